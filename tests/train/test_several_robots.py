"""Why: what the data room mixes must come out of a run as one checkpoint that drives each of its robots, resumes to the
same bytes, and starts a finetuning on one of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from la4vla import config, manifest
from la4vla.serve.policy import ServedPolicy
from la4vla.serve.policy_like import NoiseKey
from la4vla.types import Embodiment, Observation, UserError, VectorSpec
from tests.fixtures import ARM, POSE, train_config, write_shards
from tests.train.conftest import run_here

PLANE = Embodiment("test_plane", 5.0, VectorSpec(("x", "y"), "absolute"), VectorSpec(("x", "y"), "absolute"))
ROBOTS = {"arm": ARM, "pose": POSE, "plane": PLANE}
KEY = [NoiseKey(0, "test", 0, 0)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The config of a run of three robots with projections of their own, four steps long."""
    place = tmp_path_factory.mktemp("robots")
    for name, robot in ROBOTS.items():
        write_shards(place / name, views=() if name == "pose" else (f"{name}_eye",), embodiment=robot, image_size=112)
    sources = {name: (place / name, "la" if name == "pose" else "vla") for name in ROBOTS}
    settings = train_config(sources, dict.fromkeys(ROBOTS, 1.0), steps=4, global_batch=12)
    settings = replace(
        settings,
        run=config.RunConfig(dir=str(place / "run")),
        model=replace(settings.model, embodiments="separate"),
        checkpoint=config.CheckpointConfig(every_steps=2),
    )
    file = place / "config.yaml"
    file.write_text(config.to_yaml(settings))
    assert run_here(str(file)) == 0
    return file


def checkpoint(file: Path, step: int) -> Path:
    return Path(config.load(file).run.dir) / "checkpoints" / f"step_{step:08d}"


def test_the_checkpoint_drives_each_robot_in_its_own_numbers(run):
    made = manifest.read(checkpoint(run, 4))
    assert [robot.name for robot in made.trained_robots] == ["test_arm", "test_pose", "test_plane"]
    assert made.model["embodiments"] == ["test_arm", "test_pose", "test_plane"]
    for name, robot in ROBOTS.items():
        served = ServedPolicy.load(checkpoint(run, 4), embodiment=robot.name)
        assert served.embodiment == robot
        seen = {} if name == "pose" else {f"{name}_eye": np.zeros((112, 112, 3), np.uint8)}
        width = len(robot.state.names)
        chunk = served.infer([Observation(seen, np.zeros(width, np.float32), "go left")], KEY)[0]
        assert chunk.shape == (served.horizon, width) and np.isfinite(chunk).all()
        assert served.batch(
            [Observation(seen, np.zeros(width, np.float32), "go left")], KEY
        ).embodiment_B.item() == list(ROBOTS).index(name)
    with pytest.raises(
        UserError, match=r"knows the embodiments test_arm, test_pose, test_plane, so say which; .*--embodiment"
    ):
        ServedPolicy.load(checkpoint(run, 4))
    with pytest.raises(UserError, match="and hand is none of them"):
        ServedPolicy.load(checkpoint(run, 4), embodiment="hand")


def test_it_resumes_to_the_same_bytes(run, tmp_path):
    copy = shutil.copytree(config.load(run).run.dir, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "step_00000004")
    assert run_here(str(run), f"run.dir={copy}") == 0
    for name in (manifest.WEIGHTS, manifest.TRAINING):
        again = (copy / "checkpoints" / "step_00000004" / name).read_bytes()
        assert again == (checkpoint(run, 4) / name).read_bytes()


def test_it_starts_a_finetuning_on_one_robot_with_that_robots_numbers(run, tmp_path):
    alone = ["stages.first.mixture.arm=0", "stages.first.mixture.pose=0", "stages.first.steps=1", "stages.first.lr=0"]
    start = f"run.init_from={config.load(run).run.dir}"
    assert run_here(str(run), f"run.dir={tmp_path}/fine", start, *alone) == 0
    made = manifest.read(tmp_path / "fine" / "checkpoints" / "step_00000001")
    assert [robot.name for robot in made.trained_robots] == ["test_plane"]
    assert made.robots[0] == manifest.read(checkpoint(run, 4)).robots[2]
    seen = [Observation({"plane_eye": np.zeros((112, 112, 3), np.uint8)}, np.zeros(2, np.float32), "go left")]
    fine = ServedPolicy.load(tmp_path / "fine")
    before = ServedPolicy.load(checkpoint(run, 4), embodiment="test_plane")
    np.testing.assert_array_equal(fine.infer(seen, KEY)[0], before.infer(seen, KEY)[0])


def test_a_robot_that_the_weights_do_not_know_is_refused(run, tmp_path, capsys):
    write_shards(tmp_path / "hand", views=("hand_eye",), embodiment=replace(ARM, name="hand"), image_size=112)
    other = [f"data.sources.arm.path={tmp_path}/hand", "data.stats_source=arm"]
    assert run_here(str(run), f"run.dir={tmp_path}/run", f"run.init_from={config.load(run).run.dir}", *other) == 2
    assert "projections of test_arm, test_pose, test_plane and none of hand" in capsys.readouterr().err


def test_one_robot_is_a_robot_among_many_in_metrics(run):
    lines = [json.loads(line) for line in (Path(config.load(run).run.dir) / "metrics.jsonl").read_text().splitlines()]
    assert {"samples/arm", "samples/pose", "samples/plane"} <= set(lines[-1])
