"""Why: recording takes minutes and machines die. What is kept must not depend on timing, processes or interruptions,
files must be whole, replay must succeed, and the stored image must be the rendered one, the right way up."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from la4vla.config import ConstructConfig, ReadConfig, RecordConfig
from la4vla.construct import __main__ as construct
from la4vla.construct.episodes import Episode
from la4vla.construct.recording.record import RecordingJob, _identity, _missing, record, roll_out
from la4vla.construct.recording.store import (
    episode_path,
    failure_path,
    kept_episodes,
    list_episodes,
    open_store,
    read_episode,
    write_episode,
)
from la4vla.construct.robots.robot import Robot, robot_frame
from la4vla.sim.metaworld import EMBODIMENT, MetaWorldEnv
from la4vla.types import UserError

TASK = "handle-press-v3"
ROBOT = Robot(EMBODIMENT, robot_frame(EMBODIMENT.name))
SETTINGS = RecordConfig(
    tasks=[TASK], episodes=3, image_size=32, frame_stride=4, fast=True, action_noise=0.1, processes=1
)


def config(folder, **changes):
    settings = RecordConfig(**{**asdict(SETTINGS), **changes})
    return ConstructConfig(read=ReadConfig(path=str(folder / "episodes")), out_dir=str(folder / "out"), record=settings)


def job(task=TASK, number=1000, **changes):
    return RecordingJob("", task, number, RecordConfig(**{**asdict(SETTINGS), **changes}), 95)


def touch(store, task, succeeded=(), failed=()):
    for number in succeeded:
        episode_path(store, task, number).parent.mkdir(parents=True, exist_ok=True)
        episode_path(store, task, number).touch()
    for number in failed:
        failure_path(store, task, number).parent.mkdir(parents=True, exist_ok=True)
        failure_path(store, task, number).touch()


def fill(store, settings, succeeds, interrupt_at):
    """Plays the recording with a made-up outcome; stops a round halfway once, as a kill would."""
    rounds = 0
    while missing := _missing(store, settings).get(TASK, []):
        rounds += 1
        for number in missing[-2:] if rounds == interrupt_at else missing:
            touch(store, TASK, *(([number], ()) if succeeds(number) else ((), [number])))
    return kept_episodes(store, TASK, settings)


@pytest.mark.parametrize("interrupt_at", [0, 1, 2])
def test_kept_are_the_first_successes_whatever_the_order(tmp_path, interrupt_at):
    settings = RecordConfig(tasks=[TASK], episodes=10, first_episode=1000)
    kept = fill(tmp_path, settings, lambda number: number % 3 > 0, interrupt_at)
    assert kept == [number for number in range(1000, 1100) if number % 3 > 0][:10]


def test_an_expert_that_keeps_failing_is_an_error(tmp_path):
    settings = RecordConfig(tasks=[TASK], episodes=2)
    touch(tmp_path, TASK, [1000], range(1001, 1008))
    with pytest.raises(UserError, match="only 1 of 8"):
        _missing(tmp_path, settings)


def test_a_store_has_one_setting(tmp_path):
    open_store(tmp_path / "e", {"image_size": 112})
    open_store(tmp_path / "e", {"image_size": 112})
    with pytest.raises(UserError, match="image_size=112, not 224"):
        open_store(tmp_path / "e", {"image_size": 224})


def test_a_recorded_store_needs_no_gl(tmp_path, monkeypatch, capsys):
    """It can be cut anew on a machine that cannot draw; only what is missing must be rendered."""

    def nothing_renders():
        raise UserError("no GL backend renders here")

    monkeypatch.setattr("la4vla.sim.render.use_backend", nothing_renders)
    wanted, store = config(tmp_path), tmp_path / "episodes"
    open_store(store, {**_identity(wanted, EMBODIMENT), "gl_backend": "egl"})
    touch(store, TASK, [1000, 1002, 1003], [1001])
    assert record(wanted) == {TASK: 1}
    assert "3 demonstrations kept, 1 failed" in capsys.readouterr().out
    with pytest.raises(UserError, match="image_size=32, not 64"):
        record(config(tmp_path, image_size=64))
    with pytest.raises(UserError, match="no GL backend"):
        record(config(tmp_path, episodes=4))


def test_a_store_of_another_gl_backend_gets_no_new_episode(tmp_path, monkeypatch):
    monkeypatch.setattr("la4vla.sim.render.use_backend", lambda: "osmesa")
    open_store(tmp_path / "episodes", {**_identity(config(tmp_path), EMBODIMENT), "gl_backend": "egl"})
    with pytest.raises(UserError, match="gl_backend=egl, not osmesa"):
        record(config(tmp_path))


def made_up(frames=7, stride=3):
    values = np.arange(frames * 4, dtype=np.float32).reshape(frames, 4)
    images = {t: f"jpeg {t}".encode() for t in range(0, frames, stride)}
    return Episode(
        f"{TASK}-000005", TASK, 5, "Press", ROBOT, 80.0, values, values / 2, ("a", "b"), stride,
        lambda view, numbers: {t: images[t] if view == "a" else b"" for t in numbers}, values / 3,
    )  # fmt: skip


def test_a_written_episode_reads_back(tmp_path):
    path = episode_path(tmp_path, TASK, 5)
    written = made_up()
    write_episode(path, written)
    read = read_episode(path)
    for name in ("task", "number", "instruction", "embodiment", "fps", "views", "frame_stride", "key"):
        assert getattr(read, name) == getattr(written, name), name
    for name in ("state", "action", "executed"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        assert getattr(read, name).dtype == np.float32
    numbers = range(0, 7, 3)
    assert [read.frames(view, numbers) for view in "ab"] == [written.frames(view, numbers) for view in "ab"]
    first = path.read_bytes()
    write_episode(path, read)
    assert path.read_bytes() == first
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = episode_path(tmp_path, TASK, 5)
    write_episode(path, made_up())
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"not a zip at all"}[damage])
    with pytest.raises(UserError, match=r"000005\.npz is no complete episode .* record again"):
        read_episode(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["reach"]}, "drawer-open-v3"),
        ({"tasks": []}, "name record.tasks"),
        ({"episodes": 0}, "1 or more"),
    ],
)
def test_bad_settings(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        record(config(tmp_path, **changes))


@pytest.mark.sim
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("task", ["push-v3", "window-open-v3"])
def test_replaying_what_was_executed_repeats_the_episode(task, noise):
    with closing(MetaWorldEnv(("corner4",), 32, 500, True)) as env:
        number = 1000
        while (episode := roll_out(env, job(task, number, action_noise=noise))) is None:
            number += 1
        env.reset("reach-v3", 3)
        state = env.reset(task, number).state
        successes = []
        stored = episode.frames("corner4", range(0, len(episode), 4))
        for t, action in enumerate(episode.executed):
            np.testing.assert_array_equal(state, episode.state[t])
            if t in stored:
                shown = env.observe().views["corner4"]
                assert simplejpeg.encode_jpeg(shown, quality=95, colorspace="RGB") == stored[t], t
            result = env.step(action)
            state = result.state
            successes.append(result.success)
    assert len(set(stored.values())) > len(stored) / 2, "an image of the beginning is not one of what follows"
    assert any(successes)
    assert successes.index(True) == len(episode) - 6
    assert np.array_equal(episode.action, episode.executed) == (noise == 0)
    assert np.abs(episode.executed).max() <= 1
    assert np.array_equal(episode.action[:, 3], episode.executed[:, 3]), "noise is on the translation only"


@pytest.mark.sim
def test_the_stored_first_frame_is_the_rendered_one_in_one_orientation_only():
    with closing(MetaWorldEnv(("corner4",), 64, 500, False)) as env:
        episode = roll_out(env, job(image_size=64))
        rendered = env.reset(TASK, 1000).views["corner4"].astype(float)
    assert episode is not None
    stored = simplejpeg.decode_jpeg(episode.frames("corner4", [0])[0], colorspace="RGB").astype(float)
    views = {
        (turns, mirrored): np.abs(np.rot90(stored[:, ::-1] if mirrored else stored, turns) - rendered).mean()
        for turns in range(4)
        for mirrored in (False, True)
    }
    assert views.pop((0, False)) < 3
    assert min(views.values()) > 20
    assert len(episode.frames("corner4", range(0, len(episode), 4))) == -(-len(episode) // 4)


@pytest.mark.sim
@pytest.mark.slow
def test_a_killed_recording_goes_on_and_ends_with_the_same_bytes(tmp_path):
    wanted = config(tmp_path)
    lines = [f"{name}: {json.dumps(value)}" for name, value in asdict(SETTINGS).items()]
    text = f"schema: construct\nread: {{path: {wanted.read.path}}}\nout_dir: {wanted.out_dir}\nshards: 2\nrecord:\n  "
    (tmp_path / "construct.yaml").write_text(text + "\n  ".join(lines) + "\n")
    command = [sys.executable, "-m", "la4vla.construct", str(tmp_path / "construct.yaml")]
    store = Path(wanted.read.path)
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list_episodes(store, TASK):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {number: episode_path(store, TASK, number).stat().st_mtime_ns for number in list_episodes(store, TASK)}

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "EGLError" not in done.stderr
    assert f"{TASK}: 3 demonstrations kept, 0 failed attempts dropped" in done.stdout
    assert list_episodes(store, TASK) == [1000, 1001, 1002]
    for number, stamp in before.items():
        assert episode_path(store, TASK, number).stat().st_mtime_ns == stamp, "recorded twice"
    with closing(MetaWorldEnv(("corner4",), 32, 500, True)) as env:
        for number in (1002, 1000):
            episode = roll_out(env, job(number=number))
            assert episode is not None
            write_episode(tmp_path / "again.npz", episode)
            assert (tmp_path / "again.npz").read_bytes() == episode_path(store, TASK, number).read_bytes()

    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "up to date" in again.stdout


def test_other_datasets_are_not_recorded(tmp_path):
    path = tmp_path / "construct.yaml"
    path.write_text(f"schema: construct\nout_dir: {tmp_path}/out\nread: {{format: npz, path: {tmp_path}}}\n")
    with pytest.raises(UserError, match=r"read\.format is npz"):
        construct.main(["record", str(path)])
