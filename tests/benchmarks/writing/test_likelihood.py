"""Why: Figure 3 is the paper's reason for actions as text. It means something only if every form says the same motions,
the numbers are those of a plain forward, and the least likely tokens are the ones that the model finds least likely."""

import json

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.writing.likelihood import BY_RULE, MEASURED, least_likely, motions_of, score_forms
from la4vla.types import UserError
from la4vla.vlm.load import build_vlm

RARE = (301, 302, 303, 404, 405, 506, 507, 608, 709, 810)


@pytest.fixture
def model():
    vlm, encoder = build_vlm("tiny_vlm", seed=3)
    return vlm.eval(), encoder


def shunned(vlm, ids):
    """The model finds these tokens unlikely, all others about equally likely."""
    wanted = torch.zeros(vlm.network.lm_head.out_features)
    wanted[list(ids)] = -9.0
    return vlm.network.lm_head.register_forward_hook(lambda module, given, logits: 0.01 * logits + wanted)


def test_every_form_says_the_same_motions(texts):
    for item in motions_of(texts, 5):
        told = {form: item.forms[form].read(item.told(form).answer).motion for form in item.forms}
        assert told["decimals"].equals(item.motion) and told["tokens"].equals(item.motion)
        assert np.abs(told["sentence"].move_R3.sum(0) - item.motion.move_R3.sum(0)).max() < 0.0051  # whole cm
        assert item.told("decimals").turns[0].text != item.told("sentence").turns[0].text
        assert all(item.row.instruction in item.told(form).turns[0].text for form in item.forms)


def test_the_numbers_are_those_of_a_plain_forward(texts, model):
    vlm, encoder = model
    item = motions_of(texts, 1)[0]
    scores = score_forms(vlm, encoder, [item], prompts=0)
    assert set(scores) == {"decimals", "sentence", BY_RULE}
    with torch.no_grad():
        loss, counted = vlm(encoder.batch([encoder.prepare(item.told("decimals"))]))
    assert scores["decimals"].totals[0] == pytest.approx(-loss.item(), abs=1e-3)
    assert scores["decimals"].counts == (int(counted),)


def test_least_likely_tokens_are_measured(texts, model):
    vlm, encoder = model
    motions = motions_of(texts, 3)
    shunned(vlm, RARE)
    prompts = [encoder.question(item.told("decimals")) for item in motions]
    assert least_likely(vlm, encoder, prompts, 10) == RARE
    scores = score_forms(vlm, encoder, motions, prompts=3)
    assert scores[MEASURED].rare == RARE and not set(scores[BY_RULE].rare) & set(RARE)
    assert scores[MEASURED].counts == scores[BY_RULE].counts
    digits = sum(letter.isdigit() for letter in motions[0].told("decimals").answer)
    # A shunned token costs 9 more, but for what the logits say between them.
    assert scores[BY_RULE].totals[0] - scores[MEASURED].totals[0] == pytest.approx(9 * digits, rel=0.05)


def test_the_command_writes_numbers_and_a_figure(texts, tmp_path, capsys):
    assert main(["likelihood", "tiny_vlm", texts, "--out", str(tmp_path), "--rows", "4", "--prompts", "2"]) == 0
    assert BY_RULE in capsys.readouterr().out
    numbers = json.loads((tmp_path / "likelihood.json").read_text())
    assert numbers["rows"] == 4 and len(numbers["forms"][MEASURED]["rare"]) == 10
    for name, one in numbers["answers"].items():
        means = [total / count for total, count in zip(one["totals"], one["counts"], strict=True)]
        assert numbers["forms"][name]["a_token"]["mean"] == pytest.approx(sum(means) / 4)
    svg = (tmp_path / "likelihood.svg").read_text()
    assert svg.lstrip().startswith("<?xml") and "<path" in svg


def test_a_folder_without_action_texts_is_refused(tmp_path):
    from tests.fixtures import write_texts

    write_texts(tmp_path / "other")
    with pytest.raises(UserError, match="no question of type actions"):
        motions_of(tmp_path / "other", 0)
