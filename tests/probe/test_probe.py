"""Why: the probe exists to tell a policy that follows the instruction from one that follows the image or its own
state. So three toys that do nothing else are put to it, then a real checkpoint, by the command."""

import json
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from la4vla import cli
from la4vla.probe import figures, representation
from la4vla.probe.build import CaseSampling, sample_cases
from la4vla.probe.conditions import CONDITIONS, policy_under
from la4vla.probe.query import QuerySettings, query
from la4vla.probe.representation import distinct_states, represent
from la4vla.probe.run import judged
from la4vla.probe_cases.cases import open_case_clips
from la4vla.serve.policy import ServedPolicy
from la4vla.sim.metaworld import EMBODIMENT
from la4vla.types import UserError
from tests.hand_checkpoint import write_checkpoint
from tests.probe.conftest import LENGTH, VIEW, WAYS

torch.set_num_threads(1)
HORIZON = 16
PLACES = list(WAYS)


@dataclass(frozen=True)
class Toy:
    """Goes where one of its inputs says, always at the same pace; down without that input."""

    follows: str
    views: tuple[str, ...] = (VIEW,)
    kind: str = "vla"
    embodiment = EMBODIMENT
    spec = SimpleNamespace(horizon=HORIZON)

    def open(self, episode):
        assert episode.task == "probe"

    def as_kind(self, kind):
        return replace(self, kind=kind, views=() if kind == "la" else self.views)

    def infer(self, observations, noise_keys):
        assert len(observations) == len(set(noise_keys)), "two chunks of one noise"
        return [self.chunk(seen) for seen in observations]

    def chunk(self, seen):
        way = "down"
        if self.follows == "words":
            way = next((word for word in seen.instruction.split() if word in WAYS), way)
        elif self.follows == "image" and self.views:
            way = PLACES[round(float(seen.views[VIEW].mean()) / 20) - 1]
        elif self.follows == "state":
            way = PLACES[round(float(seen.state[2]) / 0.02) - 1]
        chunk = np.tile(np.append(WAYS[way], 1.0), (HORIZON, 1)).astype(np.float32)
        chunk[LENGTH:, :3] *= -9  # what lies beyond the clip's end goes far back
        return chunk


@pytest.fixture(scope="module")
def listed(shards):
    return sample_cases(str(shards), CaseSampling(count=24))


@pytest.fixture(scope="module")
def case_clips(listed):
    return open_case_clips(listed, (VIEW,))


def dar(policy, listed, case_clips, settings=QuerySettings()) -> dict:  # noqa: B008 (frozen)
    found = {}
    for condition in CONDITIONS:
        row = judged(query(policy, condition, listed.cases, case_clips, settings, lambda _: None), listed, 0)
        found[condition.name] = row["pooled"] and row["pooled"]["dar"]["value"]
    return found


NOTHING = {"empty", "punctuation-only"}


def test_a_policy_that_follows_words_is_told_by_words_alone(listed, case_clips):
    found = dar(Toy("words"), listed, case_clips)
    assert found.pop("swapped") == 0.0
    assert {found.pop(name) for name in NOTHING} == {4 / 24}  # down, of six directions, is right
    assert set(found.values()) == {1.0} and len(found) == 7


def test_a_policy_that_follows_the_image_is_told_by_images_alone(listed, case_clips):
    found = dar(Toy("image"), listed, case_clips)
    assert found["visual-conflict"] == 0.0
    assert found["visual-removed"] == found["conflicting-state"] == 4 / 24
    assert found["visual-unaligned"] == 0.0  # images of an episode's other motions: straight across
    assert {found[name] for name in ("standard", "swapped", "empty", "paraphrased", "visual-masked-released")} == {1.0}


def test_a_policy_that_goes_where_its_state_is_typical_for_shows_in_the_conflicting_state(listed, case_clips):
    found = dar(Toy("state"), listed, case_clips)
    assert found.pop("conflicting-state") == 0.0 and set(found.values()) == {1.0}


def test_all_scores_of_a_perfect_answer(listed, case_clips):
    answers = query(Toy("words"), CONDITIONS[0], listed.cases, case_clips, QuerySettings(), lambda _: None)
    found = judged(answers, listed, 0)
    assert (
        found["cases"] == found["trials"] == 24
        and found["not_asked"] == {}
        and list(found["pairs"])
        == [
            "forward/backward",
            "left/right",
            "up/down",
        ]
    )
    for row in (found["pooled"], *found["pairs"].values()):
        assert row["dcs"]["value"] > 0.98 and row["sr"]["value"] > 1e6 and row["ss"]["value"] == 1.0
    assert found["mean_of_pairs"]["ss"] == 1.0
    assert found["paper"]["VLA policy, Table 1"] == {"dar": 0.98, "dcs": 0.95, "sr": 2.35, "ss": 0.55}


def test_a_conflict_is_told_apart_by_how_near_its_image_is(listed, case_clips):
    """By hand: a conflicting image of the case's own episode is about the motion; one of another task is another
    scene. A policy of words is right under both, one of images under none."""
    conflict = next(condition for condition in CONDITIONS if condition.name == "visual-conflict")
    nearness = listed.nearness()["conflict"]
    for follows, dar_of in (("words", 1.0), ("image", 0.0)):
        found = judged(
            query(Toy(follows), conflict, listed.cases, case_clips, QuerySettings(), lambda _: None), listed, 0
        )
        assert found["by_nearness"] == {near: {"trials": n, "dar": dar_of} for near, n in nearness.items()}
    own = judged(
        query(Toy("words"), CONDITIONS[0], listed.cases, case_clips, QuerySettings(), lambda _: None), listed, 0
    )
    assert own["by_nearness"] == {}


def test_swapped_is_also_judged_by_what_was_told(listed, case_clips):
    swapped = next(condition for condition in CONDITIONS if condition.name == "swapped")
    found = judged(query(Toy("words"), swapped, listed.cases, case_clips, QuerySettings(), lambda _: None), listed, 0)
    assert (found["pooled"]["dar"]["value"], found["obedience"]["dar"]["value"]) == (0.0, 1.0)
    assert found["pooled"]["ss"]["value"] == found["obedience"]["ss"]["value"] == 1.0


def test_only_the_part_within_the_clip_counts_unless_wanted(listed, case_clips):
    """A clip has 12 frames and a chunk 16; the last four of the toy undo and reverse the rest."""
    assert dar(Toy("words"), listed, case_clips, QuerySettings(whole_chunk=True))["standard"] == 0.0


def test_several_chunks_a_case_are_trials_of_it(listed, case_clips):
    answers = query(Toy("words"), CONDITIONS[0], listed.cases[:5], case_clips, QuerySettings(samples=3), lambda _: None)
    assert len(answers.paths) == 15 and judged(answers, listed, 0)["cases"] == 5


def test_what_cannot_be_asked_is_said_and_never_skipped(listed, case_clips):
    blind = Toy("words", views=())
    found = {c.name: query(blind, c, listed.cases, case_clips, QuerySettings(), lambda _: None) for c in CONDITIONS}
    refused = {name: answers.refusal for name, answers in found.items() if answers.refusal}
    assert refused == dict.fromkeys(
        ("standard", "visual-masked-released", "visual-unaligned", "visual-conflict"),
        "not applicable: the policy sees no images",
    )
    assert len(found["swapped"].paths) == 24
    some = [replace(case, conflict=None) if number else case for number, case in enumerate(listed.cases)]
    conflict = next(condition for condition in CONDITIONS if condition.name == "visual-conflict")
    row = judged(query(Toy("words"), conflict, some, case_clips, QuerySettings(), lambda _: None), listed, 0)
    assert row["cases"] == 1 and row["not_asked"] == {"no clip of the opposite direction": 23}


def test_images_are_shown_to_a_policy_that_was_trained_on_masked_ones():
    leaky = Toy("words", kind="la_leaky")
    kinds = {condition.name: policy_under(leaky, condition).kind for condition in CONDITIONS}
    assert [name for name, kind in kinds.items() if kind == "vla"] == [
        "standard",
        "visual-unaligned",
        "visual-conflict",
    ]
    assert [name for name, kind in kinds.items() if kind == "la"] == ["visual-removed", "conflicting-state"]


def test_actions_that_are_not_finite_are_no_answer(listed, case_clips):
    class Diverged(Toy):
        def chunk(self, seen):
            return np.full((HORIZON, 4), np.nan, np.float32)

    with pytest.raises(UserError, match="not finite; its training diverged"):
        query(Diverged("words"), CONDITIONS[0], listed.cases, case_clips, QuerySettings(), lambda _: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("seeing") / "checkpoint", EMBODIMENT, (VIEW,))


@pytest.fixture(scope="module")
def blind_run(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("blind") / "checkpoint", EMBODIMENT, (), kind="la")


def test_the_command_from_shards_to_a_page(shards, run, tmp_path, capsys):
    cases, out = tmp_path / "cases.jsonl", tmp_path / "out"
    assert cli.main(["probe", "cases", str(shards), "--out", str(cases), "--count", "12"]) == 0
    assert "12 cases: 2 forward, 2 backward, 2 left, 2 right, 2 up, 2 down" in capsys.readouterr().out
    assert cli.main(["probe", str(run), "--cases", str(cases), "--out", str(out), "--states", "6"]) == 0
    assert "visual-conflict" in capsys.readouterr().out
    numbers = json.loads((out / "probe.json").read_text())
    assert list(numbers["conditions"]) == [condition.name for condition in CONDITIONS]
    for row in numbers["conditions"].values():
        assert row["cases"] == 12 and row["pooled"]["dar"]["low"] <= row["pooled"]["dar"]["value"]
    ends = {name: [row["predicted"] for row in rows] for name, rows in numbers["displacements"].items()}
    assert len({json.dumps(rows) for rows in ends.values()}) == len(ends), "two conditions asked the same"
    page = (out / "probe.html").read_text()
    assert page.count("data:image/svg+xml") == 4 and "http" not in page.replace("http://www.w3.org", "")
    again = tmp_path / "again"
    named = ["--conditions", "standard", "visual-conflict", "--states", "0"]
    assert cli.main(["probe", str(run), "--cases", str(cases), "--out", str(again), *named]) == 0
    repeated = json.loads((again / "probe.json").read_text())
    assert list(repeated["conditions"]) == ["standard", "visual-conflict"] and repeated["representation"] is None
    for name, row in repeated["conditions"].items():
        assert row == numbers["conditions"][name]


def test_a_blind_checkpoint_is_probed_without_images(shards, blind_run, tmp_path, capsys):
    cases = tmp_path / "cases.jsonl"
    sample_cases(str(shards), CaseSampling(count=6)).write(cases)
    assert cli.main(["probe", str(blind_run), "--cases", str(cases), "--out", str(tmp_path), "--states", "0"]) == 0
    assert "not applicable: the policy sees no images" in capsys.readouterr().out
    assert "not applicable: the policy sees no images" in (tmp_path / "probe.html").read_text()


def test_a_condition_that_does_not_exist_and_another_robot_are_refused(shards, run, tmp_path, capsys):
    cases = tmp_path / "cases.jsonl"
    sample_cases(str(shards), CaseSampling(count=6)).write(cases)
    assert cli.main(["probe", str(run), "--cases", str(cases), "--conditions", "blind"]) == 2
    other = write_checkpoint(tmp_path / "other", replace(EMBODIMENT, control_hz=5.0), (VIEW,))
    assert cli.main(["probe", str(other), "--cases", str(cases)]) == 2
    error = capsys.readouterr().err
    assert "`blind` is not a condition" in error and "sample cases from shards like those it was trained on" in error


def test_what_is_missing_or_out_of_range_is_said_before_anything_is_computed(run, tmp_path, capsys, monkeypatch):
    probe = ["probe", str(run), "--cases", str(tmp_path / "none.jsonl")]
    assert cli.main([*probe, "--samples", "0"]) == cli.main(["probe", "cases", "x", "--out", "y", "--count", "1"]) == 2
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert cli.main(probe) == 2
    error = capsys.readouterr().err
    assert "--samples is 0; it must be in [1, inf)" in error and "--count is 1" in error
    assert 'probing needs sklearn: pip install "la4vla[probe]"' in error


def test_what_enters_the_head_is_told_apart_by_direction_and_state(listed, case_clips, run):
    policy = ServedPolicy.load(run)
    states = distinct_states(listed.cases, case_clips)
    found, again = represent(policy, states, 0), represent(policy, states, 0)
    assert np.array_equal(found.map_M2, again.map_M2)
    assert len(found.state_M) == 6 * len(set(found.state_M.tolist())) > 12
    assert -1 <= found.by_state <= 1 and -1 <= found.by_direction <= 1
    pages = [figures.representation(replace(found, position_M3=found.position_M3[:, :dims])) for dims in (3, 0)]
    assert b"hand position" in pages[0] and b"its number" in pages[1], "a state of joint angles is numbered"
    few = represent(policy, states[:2], 0)
    assert len(few.state_M) == 12 and few.perplexity == 11 / 3


def test_the_silhouettes_are_of_what_they_are_called(monkeypatch):
    """Vectors that the word alone decides lie together by direction and not at all by state."""
    word = np.tile(np.eye(6, dtype=np.float32), (5, 1))
    monkeypatch.setattr(representation, "vectors", lambda policy, states: word)
    found = represent(Toy("words"), [np.full(4, n, np.float32) for n in range(5)], 0)
    assert found.by_direction > 0.99 and found.by_state < 0.01


def test_the_representation_counts_words_and_state_and_no_padding(run):
    """By hand, one row: the mean of the context's rows and the state token; the same in a batch with a longer row."""
    from la4vla.probe.representation import vectors
    from la4vla.serve.policy_like import NoiseKey
    from la4vla.types import Observation

    policy = ServedPolicy.load(run).as_kind("la")
    state = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    batch = policy.batch([Observation({}, state, "move the gripper forward")], [NoiseKey(0, "x", 0, 0)])
    with torch.inference_mode():
        context, _ = policy.policy.backbone(batch)
        token = policy.policy.head.state_encoder(batch.state_BS, batch.embodiment_B)
    wanted = torch.cat([context[0], token]).mean(dim=0).numpy()
    rows = vectors(policy, [state, state + 0.1])
    assert rows.shape == (12, len(wanted))
    np.testing.assert_allclose(rows[0], wanted, atol=1e-5)
    assert np.abs(rows[6] - wanted).max() > 1e-3
