"""Why: a probe of a robot with two arms that looks at the wrong arm, or turns `with the left arm` into the right one
when it asks for the opposite, measures nothing. And where commands are joints, only kinematics tells where they go."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from la4vla.construct.__main__ import run
from la4vla.construct.arm_words import arm_of
from la4vla.construct.vocabulary import named_direction
from la4vla.data.delta import delta_action
from la4vla.data.rotation import on_side
from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_shard
from la4vla.grounding.rules import RulesScorer
from la4vla.probe.build import MOTIONS, CaseSampling, sample_cases
from la4vla.probe.hand import hand_way
from la4vla.probe.wording import only_direction, opposite, paraphrase
from la4vla.probe_cases.cases import open_case_clips, read_cases
from la4vla.probe_cases.motion import travel
from la4vla.types import Deed, Embodiment, UserError, VectorSpec
from tests.construct.propose.test_two_arms import made
from tests.construct.readers.test_robot_files import so101

SENTENCE = "with the left arm, move the gripper right"


def clips_of(folder):
    index = read_index(folder)
    return index, [clip for number in range(len(index.shards)) for clip in read_shard(index, number, ())]


def test_cases_know_their_arm_and_change_only_the_direction(tmp_path):
    config = made(tmp_path)
    with np.load(tmp_path / "set/0.npz") as file:
        arrays = dict(file)
    arrays |= {"images_front": np.zeros((len(arrays["state"]), 16, 16, 3), np.uint8)}
    np.savez(tmp_path / "set/0.npz", **arrays)
    config.propose.min_clip_frames = 10
    run(config, "shards")
    listed = sample_cases(f"{config.out_dir}/vla", CaseSampling(8, robot=config.read.robot, one_sided=True))
    ways = {(case.arm, case.direction) for case in listed.cases}
    assert ways == {("left", "up"), ("right", "forward"), ("both", "down")}
    for case in listed.cases:
        assert arm_of(case.instruction) == arm_of(case.opposite) == arm_of(case.paraphrase) == case.arm
        assert case.conflict is None, "no clip of the same arm goes the other way"
    listed.write(tmp_path / "cases.jsonl")
    assert read_cases(tmp_path / "cases.jsonl") == replace(listed, axes=dict(listed.axes))
    clips = open_case_clips(listed, ())
    for case in listed.cases:
        clip = clips.clips[case.clip]
        end = travel(clip.action[case.frame :], clip.state[case.frame], clips.index.embodiment, case.arm)[-1]
        assert end @ case.toward > 0.9 * np.linalg.norm(end) > 0


def test_the_name_of_an_arm_is_neither_swapped_nor_counted():
    assert only_direction(SENTENCE) == (1, -1)
    assert opposite(SENTENCE) == "with the left arm, move the gripper left"
    other = paraphrase(SENTENCE, 0.5)
    assert other.startswith("with the left arm, ") and other != SENTENCE and only_direction(other) == (1, -1)
    assert opposite("with both arms, move up") == "with both arms, move down"


def test_commands_of_joints_lead_where_the_words_say(tmp_path):
    config = so101(tmp_path / "set")
    run(config, "shards")
    index, clips = clips_of(Path(config.out_dir, "la"))
    way, moving = hand_way(index.embodiment, ""), [clip for clip in clips if clip.primitive in MOTIONS]
    assert {clip.primitive for clip in moving} == {"move", "lift", "transport"}
    for clip in moving:
        end = way.travel(clip.action, clip.state[0], "")[-1]
        assert end @ named_direction(clip.instruction) > 0.9 * np.linalg.norm(end) > 0.05
    nameless = replace(index.embodiment, name="droid_franka")
    with pytest.raises(UserError, match="does not command x, y"):
        hand_way(nameless, "")


def test_whatever_reads_two_arms_reads_both():
    names = ("left_x", "left_y", "left_z", "left_gripper", "right_x", "right_y", "right_z", "right_gripper")
    two = Embodiment("two", 10.0, VectorSpec(names, "absolute"), VectorSpec(names, "absolute"))
    delta = delta_action(two, "delta_to_state")
    assert delta is not None and delta.action_dims == (0, 1, 2, 4, 5, 6), "grippers stay absolute"
    rises = np.zeros((5, 8), np.float32)
    rises[:, 6] = np.arange(5)
    scorer = RulesScorer(two, ("+x", "+y", "+z"))
    said = {"with the right arm, move up": 1, "with the right arm, move down": -1, "with the left arm, move up": 0}
    deeds = [Deed("key", sentence, np.zeros((4, 4, 3), np.uint8), rises) for sentence in [*said, "move up"]]
    assert scorer.scores(deeds).tolist() == [*said.values(), 0]
    turned = tuple(f"{arm}_{name}" for arm in ("left", "right") for name in ("rx", "ry", "rz"))
    hands = VectorSpec(turned, "absolute", rotation="euler_xyz", rotation_near=(np.pi, 0, 0))
    state = np.array([3.0, 0, 0, -3.0, 0, 0], np.float32)
    assert np.allclose(on_side(state, hands), [3.0, 0, 0, 2 * np.pi - 3, 0, 0])
    assert delta_action(Embodiment("hands", 10.0, hands, hands), "delta_to_state") is None
