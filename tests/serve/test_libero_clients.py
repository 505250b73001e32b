"""Why: a policy that plays LIBERO well scores nothing behind a client that shows it mirrored images, a state of other
numbers or a gripper the other way round. The clients here are written from the documentation of openpi and Evo-1 and
play in LIBERO itself; what reaches the policy is compared with what our own env shows after the same actions."""

import asyncio
import gc
import json
import math
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
import websockets
from PIL import Image

from la4vla.serve import libero_client
from la4vla.serve.dialects import build
from la4vla.serve.policy import ServedPolicy
from la4vla.sim import libero as ours
from la4vla.sim.render import use_backend
from la4vla.types import Observation, UserError
from tests.hand_checkpoint import write_checkpoint
from tests.serve.serving import ARM, HANG_S, VIEWS, recording, serving
from tests.serve.test_server_dialects import OpenpiClient, evo1_answers, evo1_request, libero_observation

torch.set_num_threads(1)
SUITE, TASK, STORED_STATE = "libero_object", 3, 5
SIZE = 96  # pixels; openpi's client renders 256, Evo-1's 448
WAIT, QUERIES = 10, 2


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "libero"
    return ServedPolicy.load(write_checkpoint(folder, ours.EMBODIMENT, ours.CAMERAS))


class Scene:
    """LIBERO's own env as both clients build it. commands: all that was executed since the episode's start."""

    def __init__(self) -> None:
        from libero.libero import benchmark, get_libero_path
        from libero.libero.envs import OffScreenRenderEnv

        suite = benchmark.get_benchmark_dict()[SUITE]()
        task = suite.get_task(TASK)
        path = Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
        self.env = OffScreenRenderEnv(bddl_file_name=str(path), camera_heights=SIZE, camera_widths=SIZE)
        self.env.seed(7)
        self.prompt = str(task.language)
        self.stored = suite.get_task_init_states(TASK)[STORED_STATE]

    def begin(self, wait_action: list[float]) -> None:
        """An episode until the end of the wait."""
        self.env.reset()
        self.shown = self.env.set_init_state(self.stored)
        self.commands: list[list[float]] = []
        for _ in range(WAIT):
            self.step(wait_action)

    def step(self, action: list[float]) -> None:
        self.shown, _, _, _ = self.env.step(action)
        self.commands.append(action)

    def turned(self, name: str) -> np.ndarray:
        """By 180 degrees."""
        return np.ascontiguousarray(self.shown[name][::-1, ::-1])

    def state(self) -> np.ndarray:
        """float64 [8]: position, axis times angle, finger joints."""
        x, y, z, w = self.shown["robot0_eef_quat"]
        w = min(max(w, -1.0), 1.0)
        sine = math.sqrt(1.0 - w * w)
        turn = np.zeros(3) if math.isclose(sine, 0.0) else np.array([x, y, z]) * 2.0 * math.acos(w) / sine
        return np.concatenate([self.shown["robot0_eef_pos"], turn, self.shown["robot0_gripper_qpos"]])

    def close(self) -> None:
        self.env.close()
        gc.collect()


def resized(image: np.ndarray, side: int = 224) -> np.ndarray:
    """openpi's image_tools for a square image, where there is nothing to pad."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def openpi_episode(scene: Scene, url: str, queries: int, replan: int) -> list[list[float]]:
    """openpi's examples/libero: wait with the gripper open, ask, execute the first actions of a chunk, ask again."""
    scene.begin([0.0] * 6 + [-1.0])
    plan = deque()
    with OpenpiClient(url) as client:
        while queries or plan:
            if not plan:
                queries -= 1
                element = {
                    "observation/image": resized(scene.turned("agentview_image")),
                    "observation/wrist_image": resized(scene.turned("robot0_eye_in_hand_image")),
                    "observation/state": scene.state(),
                    "prompt": scene.prompt,
                }
                plan.extend(client.infer(element)["actions"][:replan])
            scene.step(plan.popleft().tolist())
    return scene.commands


def evo1_episode(scene: Scene, url: str, queries: int, replan: int) -> list[list[float]]:
    """Evo-1's LIBERO client: wait with zeros, ask, execute actions with a thresholded gripper, ask again."""
    scene.begin([0.0] * 7)

    async def play() -> None:
        async with websockets.connect(url) as socket:
            for _ in range(queries):
                images = [scene.turned("agentview_image"), scene.turned("robot0_eye_in_hand_image")]
                request = {
                    "image": [image.tolist() for image in [*images, np.zeros((SIZE, SIZE, 3), np.uint8)]],
                    "state": scene.state().tolist(),
                    "prompt": scene.prompt,
                    "image_mask": [1, 1, 0],
                    "action_mask": [1] * 7 + [0] * 17,
                }
                await socket.send(json.dumps(request))
                for action in json.loads(await asyncio.wait_for(socket.recv(), HANG_S))[:replan]:
                    action[6] = -1 if action[6] > 0.5 else 1
                    scene.step(action[:7])

    asyncio.run(play())
    return scene.commands


def shown_by_ours(env: ours.LiberoEnv, commands: list[list[float]], replan: int) -> list[Observation]:
    """What our env shows after the wait and after every `replan` commands, but for the last ones."""
    env.reset(f"{SUITE}_{TASK:02d}", STORED_STATE)
    shown = []
    for number, command in enumerate(commands):
        if number >= WAIT and (number - WAIT) % replan == 0:
            shown.append(env.observe())
        env.step(np.array(command, np.float32))
    return shown


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference in grey levels."""
    return float(np.abs(resized(one).astype(float) - resized(other)).mean())


CHANGES = (np.s_[:], np.s_[:, ::-1], np.s_[:, :, ::-1])
"""None, mirrored, channels swapped."""

CLIENTS = {"openpi": (openpi_episode, 5), "evo1": (evo1_episode, 7)}
"""Dialect -> client, and the actions of a chunk that it executes (Evo-1's: 14)."""


@pytest.mark.sim
@pytest.mark.slow
def test_clients_play_libero_and_the_policy_sees_what_our_env_shows(policy, libero):
    """First theirs, then ours: two live envs in one process draw wrong images."""
    ours.open_libero()
    use_backend()
    scene, played = Scene(), []
    for dialect, (play, replan) in CLIENTS.items():
        remembering, asked = recording(policy)
        with serving(remembering, dialect=dialect, libero_client=True) as (url, _):
            commands = play(scene, url, QUERIES, replan)
        assert len(asked) == QUERIES and len(commands) == WAIT + QUERIES * replan
        assert np.ptp([seen.state for seen in asked], 0).max() > 1e-3, "the actions never moved the robot"
        played.append((asked, commands, replan))
    scene.close()
    env = ours.LiberoEnv(ours.CAMERAS, SIZE, 100, False)
    for asked, commands, replan in played:
        for seen, shown in zip(asked, shown_by_ours(env, commands, replan), strict=True):
            assert seen.instruction == shown.instruction
            np.testing.assert_allclose(seen.state, shown.state, atol=2e-3)
            for view in ours.CAMERAS:
                right, mirrored, swapped = (unlike(seen.views[view], shown.views[view][change]) for change in CHANGES)
                assert 3 * right < min(mirrored, swapped)
    env.close()


def test_the_state_is_translated_to_ours():
    """By hand: -3 rad about x are 2 pi - 3, and 3.5 stay; fingers at 3 and -1 cm are 4 of 8 cm apart."""
    sent = np.array([0.1, 0.2, 0.3, -3.0, 0.0, 0.0, 0.03, -0.01], np.float32)
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    seen = libero_client.translated(Observation({"agentview": image}, sent, "lift"))
    np.testing.assert_allclose(seen.state, [0.1, 0.2, 0.3, 2 * math.pi - 3, 0, 0, 0.5], atol=1e-6)
    sent[3] = 3.5
    np.testing.assert_allclose(libero_client.translated(Observation({}, sent, "lift")).state[3], 3.5, atol=1e-6)
    assert seen.views["agentview"].tolist() == [[[3, 4, 5], [0, 1, 2]], [[9, 10, 11], [6, 7, 8]]]
    assert ours.EMBODIMENT.state == libero_client.STATE and ours.FINGER_SPAN == libero_client.FINGER_SPAN
    with pytest.raises(UserError, match="not finite"):
        libero_client.translated(Observation({}, np.array([0] * 6 + [3.4e38, -3.4e38], np.float32), "lift"))


def test_nothing_is_translated_unless_it_was_asked_for(policy):
    views = ("observation/image=agentview", "observation/wrist_image=robot0_eye_in_hand")
    with serving(policy, dialect="openpi", views=views) as (url, _), OpenpiClient(url) as client:
        with pytest.raises(RuntimeError, match="serve with --libero-client"):
            client.infer(libero_observation())
        assert len(client.infer(libero_observation(**{"observation/state": np.zeros(7)}))["actions"]) == 16
    for options in ({}, {"trim_state": True}):
        with serving(policy, dialect="evo1", evo1=options) as (url, _):
            padded = evo1_request(state=[*np.linspace(-0.4, 0.4, 8).tolist(), *[0.0] * 16])
            for answer in evo1_answers(url, evo1_request(), padded):
                assert "serve with --libero-client" in answer["error"]
    with serving(policy, dialect="evo1", libero_client=True) as (url, _):
        (answer,) = evo1_answers(url, evo1_request(state=[0.0] * 7))
        assert "8 are needed here" in answer["error"]
    with (
        serving(policy, dialect="openpi", libero_client=True) as (url, _),
        OpenpiClient(url) as client,
        pytest.raises(RuntimeError, match="has 8 numbers, 7 came"),
    ):
        client.infer(libero_observation(**{"observation/state": np.zeros(7)}))


def test_the_libero_client_of_evo1_sets_its_other_options_unless_they_are_given(policy):
    usual = build("evo1", policy, libero=True)
    assert (usual.channels, usual.gripper) == ("rgb", "opening")
    mended = build("evo1", policy, libero=True, evo1={"channels": "bgr"})
    assert (mended.channels, mended.gripper) == ("bgr", "opening")
    assert build("evo1", policy).channels == "bgr"


def test_a_policy_of_another_state_is_not_translated_for(policy, tmp_path):
    other = ServedPolicy.load(write_checkpoint(tmp_path / "arm", ARM, VIEWS))
    with pytest.raises(UserError, match="leave it out if the policy was trained on what the client sends"):
        build("openpi", other, libero=True)
    with pytest.raises(UserError, match="for foreign clients"):
        build("la4vla", policy, libero=True)
