"""Why: a probe is as good as its cases. A clip that does not go where its words say, a `conflict` that agrees, or other
cases for another checkpoint would each give numbers that mean nothing."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_shard
from la4vla.data.shards.writer import View
from la4vla.probe.build import CaseSampling, quota, sample_cases
from la4vla.probe.wording import only_direction, opposite, paraphrase
from la4vla.probe_cases.cases import open_case_clips, read_cases
from la4vla.probe_cases.motion import travel
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import UserError
from tests.fixtures import POSE, write_shards
from tests.probe.conftest import LENGTH, SIZE, STRIDE, VIEW, WAYS, clips, straight


@pytest.fixture(scope="module")
def listed(shards):
    return sample_cases(str(shards), CaseSampling(count=24))


@pytest.fixture(scope="module")
def by_key(shards):
    index = read_index(shards)
    return {clip.key: clip for number in range(len(index.shards)) for clip in read_shard(index, number, ())}


def test_opposite_directions_get_alike_many_cases_and_unfit_clips_none(listed):
    assert Counter(case.direction for case in listed.cases) == dict.fromkeys(WAYS, 4)
    assert not [case for case in listed.cases if "-bad-" in case.clip]
    assert all(tuple(case.toward) == WAYS[case.direction] for case in listed.cases)


def test_a_case_is_confused_with_what_it_says(listed, by_key):
    for case in listed.cases:
        clip, other, against = by_key[case.clip], by_key[case.unaligned.clip], by_key[case.conflict.clip]
        assert case.frame == 0 and clip.instruction == case.instruction
        assert other.key != clip.key and other.episode == clip.episode and case.unaligned.nearness == "episode"
        assert case.unaligned.frame % STRIDE == 0 and case.unaligned.frame < LENGTH
        assert case.direction not in opposite(other.instruction)
        assert against.episode == clip.episode and case.conflict.nearness == "episode" and case.conflict.frame == 0
        assert float(against.action[:, :3].sum(axis=0) @ case.toward) < -LENGTH / 2
        assert against.instruction == case.opposite


def test_what_confuses_is_looked_for_near_and_names_neither_direction(tmp_path):
    made = [
        straight(0, "up", "open", "one", 0),
        straight(1, "up", "open", "one", 40),
        straight(2, "left", "open", "one", 6),  # overlaps the first
        straight(3, "left", "open", "two", 0),
        straight(4, "down", "close", "one", 0),
    ]
    write_shards(tmp_path / "vla", made, 2, {VIEW: View(SIZE, SIZE)}, STRIDE, EMBODIMENT)
    listed = sample_cases(str(tmp_path / "vla"), CaseSampling())
    unaligned = {case.clip[-1]: case.unaligned for case in listed.cases}
    assert (unaligned["0"].clip[-1], unaligned["0"].nearness) == ("3", "task")
    assert (unaligned["1"].clip[-1], unaligned["1"].nearness) == ("2", "episode")
    assert unaligned["4"] is None
    assert {case.conflict.clip[-1] for case in listed.cases if case.direction == "up"} == {"4"}
    assert listed.nearness() == {"unaligned": {"task": 1, "episode": 1, "none": 2}, "conflict": {"any": 4}}


def test_later_frames_serve_where_clips_are_few_and_the_rest_is_said_to_be_missing(shards):
    listed = sample_cases(str(shards), CaseSampling(count=100))
    frames = Counter(case.frame for case in listed.cases)
    assert frames[0] == 24 and frames[3] > 0 and max(frames) < LENGTH // 2
    assert len({(case.clip, case.frame) for case in listed.cases}) == len(listed.cases) < 100


def test_the_seed_alone_decides(shards, listed):
    few = CaseSampling(count=12)
    first, again, other = (sample_cases(str(shards), one) for one in (few, few, replace(few, seed=1)))
    assert first == again != other


def test_a_list_is_read_back_as_it_was_written(listed, tmp_path):
    listed.write(tmp_path / "cases.jsonl")
    assert read_cases(tmp_path / "cases.jsonl") == listed
    assert len((tmp_path / "cases.jsonl").read_text().splitlines()) == 25


def test_a_folder_that_has_changed_is_refused(shards, listed, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    case_clips = open_case_clips(listed, (VIEW,), str(moved))
    case = next(case for case in listed.cases if case.direction == "right")
    image = case_clips.images(case.clip, case.frame, (VIEW,))[VIEW]
    assert image.shape == (16, 16, 3) and abs(int(image.mean()) - 20 * 4) < 3
    shutil.rmtree(moved)
    write_shards(moved, clips()[:-1], 2, read_index(shards).views, STRIDE, EMBODIMENT)
    with pytest.raises(UserError, match="not those that the cases were sampled from"):
        open_case_clips(listed, (VIEW,), str(moved))
    with pytest.raises(UserError, match="has no view `wrist`"):
        open_case_clips(listed, ("wrist",))


def test_one_sided_folders_are_refused_unless_wanted(tmp_path):
    folder = tmp_path / "vla"
    ups = [straight(number, "up", "reach", "one", number * LENGTH) for number in range(3)]
    views = {VIEW: View(16, 16)}
    write_shards(folder, [*ups, straight(9, "left", "reach", "one", 99)], 1, views, STRIDE, EMBODIMENT)
    with pytest.raises(UserError, match=r"no axis has clips in both directions \(1 left, 3 up\)"):
        sample_cases(str(folder), CaseSampling())
    listed = sample_cases(str(folder), CaseSampling(count=3, one_sided=True))
    assert Counter(case.direction for case in listed.cases) == {"left": 2, "up": 1}
    assert {case.conflict for case in listed.cases} == {None}


def test_folders_that_cannot_be_probed_are_refused(tmp_path):
    write_shards(tmp_path / "la")
    with pytest.raises(UserError, match="holds no images"):
        sample_cases(str(tmp_path / "la"), CaseSampling())
    write_shards(tmp_path / "strange", views=["front"])
    with pytest.raises(UserError, match=r"no robot file .*test_arm"):
        sample_cases(str(tmp_path / "strange"), CaseSampling())
    for text in ("", "{}\n", '{"schema": 99}\n', "no json"):
        (tmp_path / "cases.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"probe cases|upgrade"):
            read_cases(tmp_path / "cases.jsonl")
    with pytest.raises(UserError, match="make it with `la4vla probe cases`"):
        read_cases(tmp_path / "nowhere.jsonl")


def test_quotas_share_evenly_what_there_is():
    many = {(axis, sign): 100 for axis in range(3) for sign in (1, -1)}
    assert sorted(quota(many, CaseSampling(count=100)).values()) == [16, 16, 17, 17, 17, 17]
    scarce = {**many, (1, -1): 2}
    assert quota(scarce, CaseSampling(count=100)) == {
        **dict.fromkeys([(0, 1), (0, -1), (2, 1), (2, -1)], 24),
        **dict.fromkeys([(1, 1), (1, -1)], 2),
    }
    assert quota({(2, 1): 5}, CaseSampling()) == {}


@pytest.mark.parametrize(
    ("said", "turned"),
    [
        ("Move the closed gripper up.", "Move the closed gripper down."),
        ("lower the object downward toward the target", "lift the object upward toward the target"),
        ("transport the object horizontally to the left", "transport the object horizontally to the right"),
        ("Raise the held object up", "Lower the held object down"),
    ],
)
def test_only_the_direction_is_swapped(said, turned):
    assert opposite(said) == turned
    axis, sign = only_direction(said)
    assert only_direction(turned) == (axis, -sign)


@pytest.mark.parametrize(
    "said", ["move right with the open gripper", "lift the object up while holding it", "push left", "carry it back up"]
)
def test_a_paraphrase_keeps_the_direction_and_changes_the_words(said):
    for draw_at in (0.0, 0.5, 0.99):
        other = paraphrase(said, draw_at)
        assert other != said and only_direction(other) == only_direction(said)


def test_travel_adds_deltas_up_and_measures_absolutes_from_the_state():
    delta = np.array([[1, 0, 2, 9], [1, -1, 0, 9]], np.float32)
    assert travel(delta, np.zeros(4, np.float32), EMBODIMENT).tolist() == [[1, 0, 2], [2, -1, 2]]
    absolute = np.zeros((2, 7), np.float32)
    absolute[:, 2] = [0.5, 0.75]
    state = np.full(7, 0.25, np.float32)
    assert travel(absolute, state, POSE).tolist() == [[-0.25, -0.25, 0.25], [-0.25, -0.25, 0.5]]
