"""Why: LIBERO moves fixtures with every reset, keeps the gripper's last command, mirrors or flips images in every
repository that uses it, and asks a question on its first import. Each would change a success rate without an error."""

import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from la4vla.serve import libero_client
from la4vla.sim.libero import ASSETS_VARIABLE, CAMERAS, SUITES, LiberoEnv, open_libero, prompts, task_table
from la4vla.sim.registry import SIMULATORS
from la4vla.types import Observation, UserError

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("libero")]
FORTY = [row["task"] for row in task_table() if row["suite"] != "libero_90"]
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (20, 7))


def run(env, task, episode):
    """Physics and images after 20 actions of an episode."""
    env.reset(task, episode)
    for action in ACTIONS:
        env.step(action)
    return env.physics_state(), env.observe().views


@pytest.mark.parametrize("task", ["libero_spatial_04", "libero_10_03", "libero_object_00"])
def test_an_episode_is_the_same_in_a_new_env_and_after_others(task):
    """The first two are tasks whose fixtures drift over hard resets."""
    with closing(LiberoEnv(CAMERAS, 64, 100, False)) as env:
        first = run(env, task, 5)
    with closing(LiberoEnv(CAMERAS, 64, 100, False)) as env:
        run(env, "libero_goal_00", 0)
        other, _ = run(env, task, 55)
        run(env, task, 0)
        again = run(env, task, 5)
    np.testing.assert_allclose(again[0], first[0], atol=1e-12)
    for view in CAMERAS:
        np.testing.assert_array_equal(again[1][view], first[1][view])
    moved = np.abs(other - first[0]).max() > 1e-4
    assert moved != task.startswith("libero_object"), "another block places fixtures elsewhere, where there are any"


def test_a_soft_reset_is_a_cleaned_hard_reset():
    """A hard one builds the model anew, 8 times as slowly, and adds to a list that shifts the draws of the next: this
    scene is one of four where fixtures would then stand elsewhere."""
    with closing(LiberoEnv((), 64, 100, False)) as env:
        for episode in (0, 5):
            soft, _ = run(env, "libero_spatial_04", episode)
        env._scene.env.hard_reset = True
        env._scene.env.object_property_initializers = []
        hard, _ = run(env, "libero_spatial_04", 5)
    np.testing.assert_allclose(soft, hard, atol=1e-12)


def test_the_hand_drifts_in_the_wait_as_it_did_for_published_numbers():
    """The controller keeps the goal of the pose before the stored state was set; resetting it is tempting."""
    with closing(LiberoEnv((), 64, 100, False)) as env:
        start = env.reset("libero_spatial_00", 0).state
        for _ in range(10):
            end = env.step(np.array([0, 0, 0, 0, 0, 0, -1.0])).state
    assert np.linalg.norm(end[:3] - start[:3]) == pytest.approx(0.0043, abs=0.0005)
    turned = Rotation.from_rotvec(end[3:6]) * Rotation.from_rotvec(start[3:6]).inv()
    assert np.degrees(turned.magnitude()) == pytest.approx(3.1, abs=0.3)


def test_evo1s_numbers_are_those_that_its_client_sends():
    """Translated as the server translates that client's messages, they are ours; its gripper opens above a half."""
    client = SIMULATORS["libero"].clients["evo1"]
    with closing(LiberoEnv((), 64, 100, False)) as env:
        for _ in range(2):
            state = env.reset("libero_spatial_00", 0).state
            sent = Observation({}, client.state(env), "")
            np.testing.assert_allclose(libero_client.translated(sent).state, state, atol=1e-5)
            env.step(ACTIONS[0])
    opens = client.actions(np.float32([[0, 0, 0, 0, 0, 0, 0.7], [0, 0, 0, 0, 0, 0, 0.4]]))
    assert opens[:, 6].tolist() == [-1.0, 1.0]


def test_instructions_are_those_of_published_evaluations():
    """The benchmark's own, made of the file's name: in 25 of the 40 tasks the file itself has another sentence."""
    open_libero()
    from libero.libero import benchmark

    for suite in SUITES:
        tasks = benchmark.get_benchmark_dict()[suite]().tasks
        rows = [row for row in task_table() if row["suite"] == suite]
        assert [(row["name"], row["prompt"]) for row in rows] == [(task.name, task.language) for task in tasks]
        assert [row["task"] for row in rows] == [f"{suite}_{number:02d}" for number in range(len(tasks))]


def test_images_are_upright_and_not_mirrored():
    """agentview faces the robot from above: its left (+y) is at the image's right, its front (+x) lower than its
    back."""
    moves = {"still": (0, 0), "left": (0, 1), "right": (0, -1), "front": (1, 0), "back": (-1, 0)}
    images, middle, lowest = {}, {}, {}
    with closing(LiberoEnv(("agentview",), 96, 200, True)) as env:
        for name, (x, y) in moves.items():
            env.reset("libero_object_00", 0)
            for _ in range(12):
                env.step(np.array([x, y, 0, 0, 0, 0, 0]))
            images[name] = env.observe().views["agentview"].astype(int)
            changed = np.argwhere(np.abs(images[name] - images["still"]).sum(-1) > 60)
            if len(changed):
                middle[name], lowest[name] = changed.mean(0), changed.max(0)
    assert middle["left"][1] > middle["right"][1] + 3
    assert lowest["front"][0] > lowest["back"][0] + 3


def test_the_state_is_hand_pose_and_opening():
    with closing(LiberoEnv((), 64, 100, False)) as env:
        start = env.reset("libero_object_00", 0).state
        assert start.dtype == np.float32 and start.shape == (7,)
        for _ in range(15):
            state = env.step(np.array([0, 0, 0.5, 0, 0, 0, -1.0])).state
        assert state[2] > start[2] + 0.05 and state[6] > 0.95
        for _ in range(15):
            state = env.step(np.array([0, 0, 0, 0, 0, 0, 1.0])).state
        assert state[6] < 0.1
        for axis in range(3):
            before = Rotation.from_rotvec(state[3:6])
            for _ in range(8):
                state = env.step(np.concatenate([np.zeros(3), 0.5 * np.eye(3)[axis], [0]])).state
            turned = (Rotation.from_rotvec(state[3:6]) * before.inv()).as_rotvec()
            assert turned[axis] > 0.3 and np.abs(np.delete(turned, axis)).max() < 0.5 * turned[axis]


def test_the_turn_of_a_hand_at_work_never_jumps():
    """It points down, half a turn from the base: there shortest rotation vectors change sign six times an episode."""
    with closing(LiberoEnv((), 64, 100, False)) as env:
        states = [env.reset("libero_object_00", 0).state]
        for _ in range(90):
            states.append(env.step(env.expert_action()).state)
    turns_T3 = np.array(states)[:, 3:6]
    assert np.abs(np.diff(turns_T3, axis=0)).max() < 0.2
    assert len(set(turns_T3[:, 0] > np.pi)) == 2, "the episode passes half a turn, where the jump was"


@pytest.mark.parametrize("task", ["libero_object_03", "libero_spatial_00"])
def test_the_scripted_expert_succeeds(task):
    """One grasp across an object, one by a rim; with the noise that recording adds to the executed command."""
    noise = np.random.default_rng(1)
    with closing(LiberoEnv((), 64, 280, False)) as env:
        env.reset(task, 1)
        result = env.step(env.expert_action())
        while not (result.success or result.truncated):
            action = env.expert_action()
            assert action.shape == (7,) and action.dtype == np.float32 and np.abs(action).max() <= 1
            action[:3] += noise.normal(0, 0.1, 3)
            result = env.step(action)
        assert result.success


def test_bad_settings_and_actions_are_errors():
    with pytest.raises(UserError, match="corner4"):
        LiberoEnv(("corner4",), 64, 100, False)
    with closing(LiberoEnv((), 64, 2, False)) as env:
        with pytest.raises(UserError, match="libero_object_03"):
            env.reset("libero_object_99", 0)
        env.reset("libero_object_00", 0)
        with pytest.raises(UserError, match="size 7"):
            env.step(np.zeros(4))
        with pytest.raises(ValueError, match="not finite"):
            env.step(np.full(7, np.nan))
        assert [env.step(np.zeros(7)).truncated for _ in range(2)] == [False, True]
        with pytest.raises(RuntimeError, match="horizon"):
            env.step(np.zeros(7))


def test_missing_assets_are_an_error_with_the_cure(monkeypatch, tmp_path):
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match="scenes"):
        LiberoEnv((), 64, 100, False)


def test_assets_are_the_hubs_where_no_folder_is_named(monkeypatch, tmp_path):
    open_libero()
    import libero.libero
    from libero.libero.utils import download_utils

    def no_hub() -> str:
        raise OSError("the hub was not reached")

    monkeypatch.delenv(ASSETS_VARIABLE)
    monkeypatch.setattr(libero.libero, "__file__", str(tmp_path / "package" / "__init__.py"))  # one without assets
    for download, cure in ((lambda: str(tmp_path), ""), (no_hub, ASSETS_VARIABLE)):
        monkeypatch.setattr(libero.libero, "_assets_path_cache", None)
        monkeypatch.setattr(download_utils, "download_assets_from_huggingface", download)
        if not cure:
            open_libero()
            assert libero.libero.get_assets_path() == str(tmp_path)
        else:
            with pytest.raises(UserError, match=cure):
                open_libero()


def test_it_asks_nothing_leaves_the_home_alone_and_ends_without_a_word(tmp_path):
    """The env is alive when the interpreter ends: a context freed after EGL went down prints an exception."""
    script = (
        "from la4vla.sim.libero import LiberoEnv\n"
        "env = LiberoEnv(('agentview',), 64, 9, True)\nenv.reset('libero_goal_01', 0)"
    )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr and "Error" not in done.stderr
    assert not (home / ".libero").exists()


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_every_task_constructs_resets_and_renders(suite):
    """check_frame inside the env refuses a black or flat image."""
    tasks = [task for task in FORTY if task.startswith(suite)]
    assert len(tasks) == 10
    with closing(LiberoEnv(CAMERAS, 64, 100, True)) as env:
        for task in tasks:
            seen = env.reset(task, 0)
            assert seen.instruction == prompts()[task]
            assert {view.shape for view in seen.views.values()} == {(64, 64, 3)}
            for _ in range(3):
                assert not env.step(np.zeros(7)).success
