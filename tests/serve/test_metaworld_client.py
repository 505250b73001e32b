"""Why: Evo-1's MetaWorld client shows images with swapped channels and tells the policy where the object is. It is
written here from its documentation, plays in MetaWorld itself, and the policy must see what our own env shows, and no
more."""

import asyncio
import json

import cv2
import numpy as np
import pytest
import torch
import websockets

from la4vla.serve.policy import ServedPolicy
from la4vla.sim.metaworld import EMBODIMENT, MetaWorldEnv, prompts
from la4vla.sim.render import use_backend
from tests.hand_checkpoint import write_checkpoint
from tests.serve.serving import HANG_S, recording, serving

torch.set_num_threads(1)
TASK, CAMERA = "reach-v3", "corner2"
SIZE, CROP = 160, 2 / 3  # pixels; the client sends 448
QUERIES, REPLAN = 2, 15


def cropped(upright_HWC: np.ndarray) -> np.ndarray:
    """The middle two thirds, scaled."""
    side = round(CROP * len(upright_HWC))
    start = (len(upright_HWC) - side) // 2
    return cv2.resize(upright_HWC[start : start + side, start : start + side], (SIZE, SIZE))


def evo1_episode(url: str) -> list[np.ndarray]:
    """Evo-1's client on one task: one zero action, ask, execute 15 actions, ask again. Returns what MetaWorld said."""
    import gymnasium
    import metaworld  # noqa: F401

    how = {"render_mode": "rgb_array", "camera_name": CAMERA, "disable_env_checker": True}
    env = gymnasium.make("Meta-World/MT1", env_name=TASK, seed=4042, **how)
    env.reset(seed=4042)
    said = [env.step(np.zeros(4, np.float32))[0]]

    async def play() -> None:
        async with websockets.connect(url, max_size=100_000_000) as socket:
            for _ in range(QUERIES):
                rgb = cropped(cv2.rotate(np.ascontiguousarray(env.render(), np.uint8), cv2.ROTATE_180))
                dummy = np.zeros((SIZE, SIZE, 3), np.uint8).tolist()
                request = {
                    "image": [cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR).tolist(), dummy, dummy],
                    "state": said[-1][:8].tolist(),
                    "prompt": prompts()[TASK],
                    "image_mask": [1, 0, 0],
                    "action_mask": [1] * 4 + [0] * 20,
                }
                await socket.send(json.dumps(request))
                actions = np.asarray(json.loads(await asyncio.wait_for(socket.recv(), HANG_S)), np.float32)
                for action in actions[:REPLAN]:
                    clipped = np.clip(action[:4], env.action_space.low, env.action_space.high)
                    said.append(env.step(clipped)[0])

    asyncio.run(play())
    env.close()
    return said


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference in grey levels."""
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.sim
@pytest.mark.slow
def test_the_client_plays_metaworld_and_the_policy_sees_what_our_env_shows(tmp_path):
    use_backend()
    policy = ServedPolicy.load(write_checkpoint(tmp_path / "sawyer", EMBODIMENT, (CAMERA,)))
    remembering, asked = recording(policy)
    with serving(remembering, dialect="evo1", evo1={"trim_state": True}) as (url, _):
        said = evo1_episode(url)
    assert len(asked) == QUERIES and len(said) == 1 + QUERIES * REPLAN
    for seen, full in zip(asked, said[::REPLAN], strict=False):
        assert seen.state.tolist() == full[:4].astype(np.float32).tolist()
    assert np.abs(asked[1].state - asked[0].state).max() > 1e-3, "the actions never moved the robot"
    env = MetaWorldEnv((CAMERA,), 480, 1, False)
    shown_HWC = cropped(env.reset(TASK, 0).views[CAMERA])
    env.close()
    changed = (shown_HWC[:, ::-1], shown_HWC[::-1, ::-1], shown_HWC[:, :, ::-1])
    seen_HWC = asked[0].views[CAMERA]
    assert 3 * unlike(seen_HWC, shown_HWC) < min(unlike(seen_HWC, other) for other in changed)
