"""Why: a NaN, an infinity or a number that no robot measures, in shards that another hand wrote, dropped whole updates
in silence or was clipped to 1 and learned. It is named, and where it is allowed its sample is left out and counted."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from la4vla.config import TrainConfig
from la4vla.data.explain import explain
from la4vla.data.inspect.verify import verify
from la4vla.data.reader import Reader, StepData
from la4vla.data.setup import prepare
from la4vla.types import UserError
from tests.fixtures import ARM, SPEC, encode, make_clip, spoil, train_config, write_shards

CLIP, FRAME = "clip-00005", 3


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    absolute = replace(ARM, action=replace(ARM.action, reference="absolute"))
    write_shards(folder / "vla", 12, 4, ["front"], embodiment=absolute)
    return folder / "vla"


@pytest.fixture
def folder(clean, tmp_path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "vla"))


def config_of(folder: Path, allowed: int, kind: str = "la", action: str = "recorded") -> TrainConfig:
    config = train_config({"it": (folder, kind)}, steps=8)
    config.data.max_bad_samples, config.data.action = allowed, action
    return config


def steps(config: TrainConfig) -> list[StepData]:
    with Reader(config, prepare(config, SPEC, encode), 0, 1) as reader:
        return list(reader.steps("first", 0))


@pytest.mark.parametrize("kind", ["la", "vla"])
@pytest.mark.parametrize(
    ("what", "value", "words"),
    [
        ("state", math.nan, "state y is nan at frame 3"),
        ("action", math.inf, "action y is inf at frame 3"),
        ("action", -math.inf, "action y is -inf at frame 3"),
        ("state", 1e6, r"state y is 1e\+06 at frame 3 \(the folder's statistics reach from -"),
        ("action", -30, r"action y is -30 at frame 3 \(the folder's statistics"),
    ],
)
def test_a_bad_number_stops_the_run_and_is_named(folder, kind, what, value, words):
    spoil(folder, CLIP, what, FRAME, 1, value)
    named = rf"^it/{CLIP}/\d: shard shard-00000\d.tar, {words}.*raise data.max_bad_samples, now 0"
    with pytest.raises(UserError, match=named):
        steps(config_of(folder, 0, kind))


@pytest.mark.parametrize("action", ["recorded", "delta_to_state"])
@pytest.mark.parametrize("what", ["state", "action"])
@pytest.mark.parametrize("value", [math.nan, 1e6])
def test_tolerated_ones_are_masked_and_counted_and_all_others_are_as_ever(folder, what, action, value):
    """A sample uses its own state and its window's actions; where these are relative to the state, all their states."""
    config = config_of(folder, 1000, "vla", action)
    before = steps(config)
    spoil(folder, CLIP, what, FRAME, 1, value)
    after = steps(config)
    bad = 0
    for one, two in zip(before, after, strict=True):
        for old, new in zip(one.batches, two.batches, strict=True):
            assert old.keys == new.keys
            for row, key in enumerate(new.keys):
                _, clip, start = key.split("/")
                first, window = int(start), what == "action" or action == "delta_to_state"
                uses = clip == CLIP and (first <= FRAME < first + SPEC.horizon if window else first == FRAME)
                bad += uses
                assert new.action_mask_BTA[row].any() != uses
                assert new.state_BS[row].isfinite().all() and new.actions_BTA[row].isfinite().all()
                same = (old.state_BS[row] == new.state_BS[row]).all() and (
                    old.actions_BTA[row] == new.actions_BTA[row]
                ).all()
                assert same != uses
    assert after[-1].bad_samples == bad > 0 and before[-1].bad_samples == 0


def test_the_folder_written_again_without_the_fault_is_read(folder, tmp_path):
    spoil(folder, CLIP, "state", FRAME, 0, math.nan)
    with pytest.raises(UserError, match="write its folder again without this fault"):
        steps(config_of(folder, 0))
    write_shards(tmp_path / "again", [make_clip(number, 6) for number in range(12) if number != 5], 4)
    assert len(steps(config_of(tmp_path / "again", 0))) == 8


def test_a_small_excess_over_the_statistics_is_no_fault(folder):
    """Of statistics that were not computed over these very frames."""
    spoil(folder, CLIP, "state", FRAME, 1, 1.9)
    assert steps(config_of(folder, 0))[-1].bad_samples == 0


@pytest.mark.parametrize(("value", "words"), [(math.nan, "state is not finite"), (1e6, "state y is 1e+06 at frame 3")])
def test_verify_lists_such_clips(folder, value, words):
    spoil(folder, CLIP, "state", FRAME, 1, value)
    report = verify(folder)
    assert not report.ok and f"{CLIP}: {words}" in report.text()


def test_an_extreme_that_our_own_writer_took_in_is_said(tmp_path):
    """It is in the statistics, so it is no contradiction to them; a person may have to look."""
    clips = [make_clip(number, 30) for number in range(16)]
    state = clips[3].state.copy()
    state[7, 2] = 500.0
    write_shards(tmp_path / "la", [*clips[:3], replace(clips[3], state=state), *clips[4:]], 4)
    config = config_of(tmp_path / "la", 0)
    said = explain(config, prepare(config, SPEC, encode), 1)
    assert (
        "warning: it: state z reaches from -0.99" in said and "to 500, and 98 % of its frames lie between -0.9" in said
    )
    assert said.count("98 % of its frames") == 1


def test_statistics_of_other_dims_are_refused(folder, tmp_path):
    write_shards(
        tmp_path / "other",
        shards=4,
        embodiment=replace(ARM, state=replace(ARM.state, names=("x", "y", "z"))),
        clips=[replace(make_clip(number, 6), state=np.zeros((6, 3), np.float32)) for number in range(8)],
    )
    shutil.copy(tmp_path / "other" / "stats.json", folder / "stats.json")
    config = config_of(folder, 0)
    with pytest.raises(
        UserError, match=r"stats.json of .* is of the state dims x y z, its shards are of x y z gripper"
    ):
        prepare(config, SPEC, encode)
