"""Why: rounds learn from what the model itself writes, so candidates of other weights, or a round that is sampled again
otherwise after a kill, would go unnoticed for ever. Real checkpoints, the real trainer, a scorer by rule."""

import html
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from la4vla import manifest
from la4vla.files import sha256
from la4vla.gpla import rounds
from la4vla.gpla.candidates import CandidateMaker, WrittenSentence, choose
from la4vla.gpla.learner import RoundsLearner, round_file
from la4vla.gpla.prompts import ClipStarts
from la4vla.gpla.report import report
from la4vla.types import UserError
from la4vla.vlm.model import VlmModel
from la4vla.vlm.rows import answered
from la4vla.vlm.scores import token_log_probs
from la4vla.vlm.stored import load_checkpoint
from tests.gpla.conftest import RuleScorer, config_of, run_here
from tests.train.launch import start, wait


def files(config):
    """Name -> sha256 of the candidates and of the last weights."""
    last = manifest.newest(config.dir)
    made = sorted(round_file(config.dir, 0).parent.iterdir())
    return {path.name: sha256(path) for path in [*made, last / manifest.WEIGHTS, last / manifest.TRAINING]}


def rows(config, number=0):
    return [json.loads(line) for line in round_file(config.dir, number).read_text().splitlines()]


class Crash(Exception):
    """Ends a run as a kill does: nothing is saved."""


def crashing(monkeypatch, number, within):
    """The next run crashes when it is about to begin a step of a round."""
    batches = RoundsLearner._batches

    def crash(self, at, step, *rest):
        if (at, step) == (number, within):
            raise Crash
        return batches(self, at, step, *rest)

    monkeypatch.setattr(RoundsLearner, "_batches", crash)


@pytest.fixture(scope="module")
def straight(place):
    config = config_of(place, "straight")
    assert run_here(config) == 0
    return config


def test_a_row_says_what_was_written_and_why_it_was_chosen(straight):
    for number in range(3):
        found = rows(straight, number)
        assert len(found) == 4 and {row["round"] for row in found} == {number}
        assert len({row["weights"] for row in found}) == 1
        for row in found:
            scores = [item["score"] for item in row["candidates"]]
            assert [item["seed"] for item in row["candidates"]] == [0, 1, 2]
            assert (scores[row["chosen"]], scores[row["rejected"]]) == (max(scores), min(scores))
            assert row["margin"] == max(scores) - min(scores)
    assert len({rows(straight, number)[0]["weights"] for number in range(3)}) == 3
    assert {row["key"] for number in (0, 1) for row in rows(straight, number)} == {f"clip-{n:05d}" for n in range(8)}
    made = manifest.read(manifest.newest(straight.dir))
    assert made.text["round"] == {"number": 2, "weights": rows(straight, 2)[0]["weights"]}
    assert (made.step, made.stage_step, made.learner) == (3, 3, "vlm")


def test_log_probabilities_are_those_of_a_plain_forward(straight, place):
    folder = place / "high" / "checkpoints" / "step_00000007"
    vlm, encoder = load_checkpoint(folder, manifest.read(folder))
    asked = straight.candidates
    maker = CandidateMaker(asked, 5, ("front",), None, "low", RuleScorer(), False)
    starts = {start.key: start for start in ClipStarts(asked.clips, ("front",), 5).read(0, 4)}
    for row in rows(straight):
        prompt = maker.prompt(starts[row["key"]], 0, encoder)
        for item in row["candidates"]:
            (log_probs,) = token_log_probs(vlm, encoder, [answered(prompt, item["ids"])])
            assert len(log_probs) == len(item["ids"])
            assert sum(log_probs) == pytest.approx(item["log_prob"], abs=1e-3)


def test_training_makes_what_is_preferred_likelier(straight, place):
    """The pairs of round 0 before and after: the chosen sentences gain on the rejected ones."""
    folders = [place / "high" / "checkpoints" / "step_00000007", manifest.newest(straight.dir)]
    maker = CandidateMaker(straight.candidates, 5, ("front",), None, "low", RuleScorer(), False)
    starts = {start.key: start for start in ClipStarts(straight.candidates.clips, ("front",), 5).read(0, 4)}
    apart = []
    for folder in folders:
        vlm, encoder = load_checkpoint(folder, manifest.read(folder))
        means = []
        for row in rows(straight):
            prompt = maker.prompt(starts[row["key"]], 0, encoder)
            for place_of in ("chosen", "rejected"):
                ids = row["candidates"][row[place_of]]["ids"]
                (log_probs,) = token_log_probs(vlm, encoder, [answered(prompt, ids)])
                means.append(sum(log_probs) / len(ids))
        apart.append(sum(means[::2]) - sum(means[1::2]))
    assert apart[1] > apart[0] + 0.5


@pytest.mark.parametrize(
    ("changes", "crash"),
    [
        ((), (2, 0)),
        (("prefer.rounds=1", "prefer.steps=3", "prefer.prompts=6"), (0, 2)),
    ],
    ids=["on_policy", "offline"],
)
def test_a_kill_inside_a_round_changes_no_byte(place, straight, changes, crash, monkeypatch):
    """Of candidates, weights and moments. On-policy: the candidates lie there and the step is not done; the checkpoint
    is of a round before. Offline: the checkpoint is of the middle of the round."""
    whole = straight
    if changes:
        whole = config_of(place, "whole_offline", *changes)
        assert run_here(whole) == 0
    broken = config_of(place, f"broken_{len(changes)}", *changes)
    with monkeypatch.context() as patch:
        crashing(patch, *crash)
        with pytest.raises(Crash):
            run_here(broken)
    assert manifest.read(manifest.newest(broken.dir)).step == 2
    round_file(broken.dir, crash[0] + 1).write_text("of a round that has yet to come")
    assert run_here(broken) == 0
    assert files(broken) == files(whole)


def test_two_ranks_killed_then_one_equal_one(place, straight):
    """They sample and learn shares of the same rounds."""
    ended = wait(start(2, "tests/gpla/two_ranks.py", str(place), "ranks", "2"))
    assert ended.codes[0] == -9, ended.stderr
    config = config_of(place, "ranks")
    made = manifest.read(manifest.newest(config.dir))
    assert (made.step, made.world_size) == (2, 2)
    assert run_here(config) == 0
    for number in range(3):
        ours, theirs = rows(config, number), rows(straight, number)
        said = [[[item["text"] for item in row["candidates"]] for row in found] for found in (ours, theirs)]
        assert said[0] == said[1]
    a, b = (load_file(manifest.newest(one.dir) / manifest.WEIGHTS) for one in (config, straight))
    assert max(float((a[name] - b[name]).abs().max()) for name in b) < 1e-4


def test_supervised_adds_a_tenth_and_nothing_is_in_train_mode(place, monkeypatch, capsys):
    """The loss is that of the clips' own sentences + 0.1 x that of the pairs; adapters train as well."""
    modes = []

    class Watching(RuleScorer):
        def scores(self, deeds):
            modes.append([vlm.training for vlm in seen])
            return super().scores(deeds)

    seen = []
    make = CandidateMaker.make

    def watched(self, vlm, *rest):
        assert isinstance(vlm, VlmModel) and vlm.training
        seen.append(vlm)
        return make(self, vlm, *rest)

    monkeypatch.setattr(CandidateMaker, "make", watched)
    changes = ("prefer.objective=supervised_and_preference", "prefer.rounds=1", "prefer.lora.rank=2")
    config = config_of(place, "supervised", *changes, "prefer.train=[lora]")
    scorer = Watching()
    assert run_here(config, scorer) == 0
    (line,) = (json.loads(row) for row in (place / "supervised" / "metrics.jsonl").read_text().splitlines())
    assert line["loss"] == pytest.approx(line["loss/text"] + 0.1 * line["loss/preference"], rel=1e-5)
    assert modes and not any(any(mode) for mode in modes) and seen[-1].training
    stored = load_file(manifest.newest(config.dir) / manifest.WEIGHTS)
    assert stored and all(".lora_" in name for name in stored)
    by_prompt = {}
    for deed in scorer.deeds:
        by_prompt.setdefault(deed.key, []).append(deed)
    for deeds in by_prompt.values():
        assert len({deed.sentence for deed in deeds}) == len(deeds)
        assert all(deed.actions.shape == (4, 4) and deed.image.shape == (32, 32, 3) for deed in deeds)


def test_candidates_of_another_model_are_refused(place, capsys):
    config = config_of(place, "foreign", "prefer.rounds=1")
    path = round_file(config.dir, 0)
    path.parent.mkdir(parents=True)
    theirs = [{**row, "weights": "f" * 64} for row in rows(config_of(place, "straight"))]
    path.write_text("".join(json.dumps(row) + "\n" for row in theirs))
    assert run_here(config) == 2
    said = capsys.readouterr().err
    assert "holds candidates of another model than is being trained (weights ffffffffffff, not" in said
    path.write_text(path.read_text()[:-40])
    assert run_here(config) == 2 and "is damaged" in capsys.readouterr().err


def test_a_run_that_would_go_on_otherwise_is_refused(place, straight, capsys, monkeypatch):
    for change, words in (
        ("candidates.count=4", "`count` is 4, the rounds in"),
        ("candidates.margin=0.5", "`margin` is 0.5"),
        ("prefer.simpo.beta=3", "preference.beta is 3.0"),
    ):
        config = config_of(place, "straight", change)
        assert run_here(replace(config, dir=_unfinished(straight, place))) == 2
        assert words in capsys.readouterr().err


def _unfinished(config, place):
    folder = place / "unfinished"
    if not folder.exists():
        shutil.copytree(config.dir, folder)
        shutil.rmtree(folder / "checkpoints" / "step_00000003")
    return str(folder)


@pytest.mark.parametrize(
    ("scores", "margin", "expected"),
    [
        ([0.1, 0.9, 0.5], 0.0, (1, 0, "")),
        ([0.9, 0.1, 0.9, 0.1], 0.0, (0, 1, "")),
        ([0.5, 0.5], 0.0, (None, None, "margin")),
        ([0.5, 0.6], 0.2, (None, None, "margin")),
        ([0.5, None], 0.0, (None, None, "empty")),
    ],
)
def test_the_pair_is_the_best_and_the_worst(scores, margin, expected):
    sentences = [WrittenSentence(str(n), score, -1.0, n, (1,), "turn") for n, score in enumerate(scores)]
    found = choose(sentences, margin)
    assert (found.chosen, found.rejected, found.left_out) == expected
    alike = [replace(item, text="a") for item in sentences]
    assert choose(alike, 0.0).left_out in ("same", "empty")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("candidates.temperature=0", "chosen and rejected alike"),
        ("candidates.count=1", "candidates.count is 1"),
        ("scorer=", "sentences are judged by one scorer"),
        ("prefer.prompts=2", "less than one step takes"),
        ("processes=3", "3 processes cannot share"),
        ("prefer.train=[lora]", "stages.rounds trains lora and model.lora.rank is 0"),
        ("candidates.question=nxt", "nearest is `next`"),
    ],
)
def test_a_slip_is_one_sentence(place, change, words):
    with pytest.raises(UserError) as caught:
        rounds.training(config_of(place, "slips", change))
    assert words in str(caught.value)


def test_a_model_that_says_one_thing_is_refused(place, capsys, monkeypatch):
    """Almost greedy: every sentence of a prompt is the same."""
    config = config_of(place, "greedy", "candidates.temperature=0.00001", "prefer.rounds=1")
    assert run_here(config) == 2
    assert "got the same sentence 3 times" in capsys.readouterr().err
    assert torch.get_num_threads() == 1


def test_the_page_shows_every_round_and_is_the_same_twice(straight):
    path = report(straight)
    text = path.read_text()
    row = rows(straight)[0]
    for shown in (row["task"], row["candidates"][row["chosen"]]["text"], "demonstrated: Move the gripper"):
        assert html.escape(shown) in text
    assert text.count(">chosen</td>") == text.count(">rejected</td>") == 8 and "<td>2</td><td>4</td><td>4</td>" in text
    assert report(straight).read_text() == text
    with pytest.raises(UserError, match="no candidates in it yet"):
        report(replace(straight, dir=str(path.parent.parent / "nothing")))
