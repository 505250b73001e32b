"""Why: robots of different numbers share a model; a row that is scaled by another robot's statistics, or an order that
depends on who else is in the mixture, trains a policy that looks fine and moves wrongly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from la4vla.config import TrainConfig, validate
from la4vla.data.explain import explain
from la4vla.data.reader import Reader, StepData
from la4vla.data.setup import prepare
from la4vla.types import Embodiment, UserError, VectorSpec
from tests.fixtures import ARM, POSE, SPEC, encode, train_config, write_shards

PLANE = Embodiment("test_plane", 5.0, VectorSpec(("x", "y"), "absolute"), VectorSpec(("x", "y"), "absolute"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("robots")
    write_shards(folder / "arm", 16, views=("front", "wrist"))
    write_shards(folder / "pose", 16, embodiment=POSE)
    write_shards(folder / "plane", 16, views=("top",), embodiment=PLANE)
    return folder


def mixed(folders: Path, names=("arm", "pose", "plane")) -> TrainConfig:
    kinds = {"arm": "vla", "pose": "la", "plane": "vla"}
    shares = {"arm": 2.0, "pose": 1.0, "plane": 1.0}
    sources = {name: (folders / name, kinds[name]) for name in names}
    return train_config(sources, {name: shares[name] for name in names}, steps=6)


def steps(config: TrainConfig, rank=0, world=1, first=0) -> list[StepData]:
    with Reader(config, prepare(config, SPEC, encode), rank, world) as reader:
        return list(reader.steps("first", first))


def rows(data: list[StepData]) -> dict[str, bytes]:
    """Key -> everything of its row that the model computes with, but the prompt."""
    found = {}
    for batch in (batch for step in data for batch in step.batches):
        parts = (batch.state_BS, batch.state_mask_BS, batch.actions_BTA, batch.action_mask_BTA, batch.noise_BTA)
        for row, key in enumerate(batch.keys):
            found[key] = b"".join(part[row].numpy().tobytes() for part in (*parts, batch.time_B))
    return found


def test_a_row_is_what_it_is_in_a_run_of_its_robot_alone(folders):
    together = rows(steps(mixed(folders)))
    for name in ("arm", "pose", "plane"):
        alone = rows(steps(mixed(folders, (name,))))
        mine = {key: row for key, row in together.items() if key.startswith(f"{name}/")}
        assert mine and mine.items() <= alone.items(), name


def test_mixing_is_exact_and_rows_carry_their_robot(folders):
    config = mixed(folders)
    places = {name: number for number, name in enumerate(("arm", "pose", "plane"))}
    for step in steps(config):
        assert step.samples == {"arm": 8, "pose": 4, "plane": 4}
        for batch in step.batches:
            assert [places[key.partition("/")[0]] for key in batch.keys] == batch.embodiment_B.tolist()
            if batch.kind == "la":
                assert batch.images_NCHW is None and {key.partition("/")[0] for key in batch.keys} == {"pose"}


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_and_a_resumed_run_see_the_same_rows(folders, world):
    config = mixed(folders)
    whole = steps(config)
    shared = [steps(config, rank, world) for rank in range(world)]
    for number, step in enumerate(whole):
        assert rows([step]) == {key: row for part in shared for key, row in rows([part[number]]).items()}
    assert [rows([step]) for step in whole[4:]] == [rows([step]) for step in steps(config, first=4)]


def test_each_robot_has_its_own_first_view_and_its_own_statistics(folders):
    setup = prepare(mixed(folders), SPEC, encode)
    assert {name: robot.chain.views for name, robot in setup.robots.items()} == {
        "test_arm": ("front", "wrist"),
        "test_pose": (),
        "test_plane": ("top",),
    }
    for name, robot in setup.robots.items():
        own = setup.sources[name.removeprefix("test_")].stats
        assert robot.chain.normalize.state == own.state and robot.chain.normalize.action == own.action("recorded")
    kept = {robot.name: robot.view_sizes for robot in setup.trained_robots}
    assert kept == {
        "test_arm": {"front": [[16, 16]], "wrist": [[16, 16]]},
        "test_pose": {},
        "test_plane": {"top": [[16, 16]]},
    }


def test_one_robot_may_have_another_form_of_actions(folders):
    config = mixed(folders)
    config.data.sources["pose"].action = "delta_to_state"
    validate(config)
    setup = prepare(config, SPEC, encode)
    assert [robot.chain.action_form for robot in setup.robots.values()] == ["recorded", "delta_to_state", "recorded"]
    assert setup.robots["test_pose"].chain.normalize.action == setup.sources["pose"].stats.action("delta_to_state")
    with pytest.raises(UserError, match="has no statistics here"):
        prepare(replace(config, data=replace(config.data, action="delta_to_state")), SPEC, encode)
    config.data.sources["again"] = replace(config.data.sources["pose"], action="recorded")
    config.stages["first"].mixture["again"] = 1.0
    with pytest.raises(UserError, match=r"test_pose ask for different actions, delta_to_state \(pose\) and recorded"):
        prepare(config, SPEC, encode)


def test_statistics_of_one_source_serve_its_own_robot_alone(folders, tmp_path):
    write_shards(tmp_path / "more", 8, views=("front",))
    config = mixed(folders)
    config.data.sources["more"] = replace(config.data.sources["arm"], path=str(tmp_path / "more"))
    config.data.stats_source = "more"
    setup, usual = prepare(config, SPEC, encode), prepare(mixed(folders), SPEC, encode)
    same = {name: robot.chain.normalize == usual.robots[name].chain.normalize for name, robot in setup.robots.items()}
    assert same == {"test_arm": False, "test_pose": True, "test_plane": True}
    write_shards(tmp_path / "else", 8, embodiment=replace(ARM, name="another"))
    config.data.sources["more"].path = str(tmp_path / "else")
    with pytest.raises(UserError, match="more, whose embodiment none of this run's sources has"):
        prepare(config, SPEC, encode)


def test_warnings_about_values_name_the_robot(folders, tmp_path):
    config = mixed(folders)
    setup = prepare(config, SPEC, encode)
    robot = setup.robots["test_plane"]
    still = replace(robot.chain.normalize.state, **{key: (0.0, 0.0) for key in ("q01", "q99", "min", "max")})
    normal = replace(robot.chain.normalize, state=still)
    chain = replace(
        robot.chain,
        transforms=tuple(normal if part is robot.chain.normalize else part for part in robot.chain.transforms),
    )
    changed = replace(robot, processor=replace(robot.processor, chain=chain))
    said = explain(config, replace(setup, robots={**setup.robots, "test_plane": changed}), 1)
    assert "warning: test_plane: state dims x, y hardly move" in said
    assert not any("test_arm: state" in line for line in said.splitlines())
    assert np.isfinite(still.mean).all()
