"""Why: a preference loss that sums where it should average, or counts padding, trains towards short answers and never
crashes; so its numbers are compared with the library's own logits, row by row, in every family."""

import math

import pytest
import torch

from la4vla.config import PreferenceConfig
from la4vla.vlm.preference import EncodedPair, PreferenceBatch, batch_pairs, mean_log_probs, simpo_losses
from la4vla.vlm.rows import ChatEncoder, EncodedText, answered
from tests.vlm.conftest import row, small

ANSWERS = (("Move the arm up.", "red"), ("no", "close the gripper, then move"), ("same", "same, but longer"))


def pairs(encoder: ChatEncoder, counts=(True, True, True)) -> list[EncodedPair]:
    """Pairs of answers of different lengths, to prompts with one, no and two images."""
    made = []
    for number, (answers, images, count) in enumerate(zip(ANSWERS, (1, 0, 2), counts, strict=True)):
        chosen, rejected = (encoder.prepare(row(f"pairs/{number}", answer, images)) for answer in answers)
        made.append(EncodedPair(chosen, rejected, count))
    return made


def plain(vlm, encoder: ChatEncoder, encoded: EncodedText) -> float:
    """Mean log-probability of the answer's tokens from the library's logits, of this row alone."""
    batch = encoder.batch([encoded])
    logits_BLV = vlm.network(
        input_ids=batch.input_ids_BL, attention_mask=batch.text_mask_BL.long(), use_cache=False, **batch.images
    ).logits
    answer = int((encoded.labels_L >= 0).sum())
    log_probs = logits_BLV[0].float().log_softmax(-1)
    places = range(encoded.tokens - answer, encoded.tokens)
    return float(sum(log_probs[place - 1, encoded.ids_L[place]] for place in places)) / answer


@torch.no_grad()
def test_log_probabilities_are_those_of_a_plain_forward(pair, monkeypatch):
    vlm, encoder = pair
    made = pairs(encoder)
    batch = batch_pairs(made, encoder)
    found = mean_log_probs(vlm.log_probs(batch.texts), batch.texts).tolist()
    expected = [plain(vlm, encoder, item.chosen) for item in made]
    expected += [plain(vlm, encoder, item.rejected) for item in made]
    assert found == pytest.approx(expected, abs=2e-5)
    settings = PreferenceConfig(beta=3.0, gamma=0.5)
    losses = [math.log1p(math.exp(0.5 - 3.0 * (a - b))) for a, b in zip(expected[:3], expected[3:], strict=True)]
    monkeypatch.setattr(vlm, "preference", settings)
    loss_sum, count = vlm(batch)
    assert (float(loss_sum), float(count)) == pytest.approx((sum(losses), 3.0), abs=2e-4)
    assert batch.keys == ("pairs/0", "pairs/1", "pairs/2") and (batch.rows, batch.counted) == (3, 3)


def test_a_pair_that_does_not_count_has_no_gradient():
    encoder = small("tiny_vlm")[1]
    batch = batch_pairs(pairs(encoder, (True, False, True)), encoder)
    log_probs = torch.linspace(-3, -1, batch.texts.counted).requires_grad_()
    losses = simpo_losses(log_probs, batch, PreferenceConfig())
    losses.sum().backward()
    row_M = batch.texts.answer_index // batch.texts.input_ids_BL.shape[1]
    assert log_probs.grad is not None and losses[1] == 0
    moved = {int(number) for number in row_M[log_probs.grad != 0]}
    assert moved == {0, 2, 3, 5} and batch.counted == 2


@torch.no_grad()
def test_micro_batches_add_up():
    vlm, encoder = small("tiny_vlm")
    made = pairs(encoder, (True, True, False))
    whole = vlm(batch_pairs(made, encoder))
    parts = [vlm(batch_pairs(made[cut], encoder)) for cut in (slice(0, 1), slice(1, 3))]
    for number in range(2):
        assert float(whole[number]) == pytest.approx(sum(float(part[number]) for part in parts), abs=1e-4)


def test_an_answer_of_given_tokens_is_the_row_of_its_text(pair):
    """What was written is learned token by token; where its text splits into the same ones, it is the same row."""
    _, encoder = pair
    whole = encoder.prepare(row())
    prompt = encoder.question(row())
    again = answered(prompt, whole.ids_L[prompt.tokens :].tolist())
    assert torch.equal(again.ids_L, whole.ids_L) and torch.equal(again.labels_L, whole.labels_L)
    assert again.inputs.keys() == whole.inputs.keys()
    assert all(torch.equal(again.inputs[name], whole.inputs[name]) for name in whole.inputs)


def test_a_batch_moves_whole():
    encoder = small("tiny_vlm")[1]
    moved = batch_pairs(pairs(encoder), encoder).to("meta")
    assert isinstance(moved, PreferenceBatch)
    assert {moved.counts_P.device.type, moved.texts.input_ids_BL.device.type} == {"meta"}
