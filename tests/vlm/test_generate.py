"""Why: rollouts ask many episodes at once, so what one of them writes must not depend on the others, and preferences
compare log-probabilities that training computes elsewhere. On the real classes of every family."""

import copy
import json

import pytest
import torch

from la4vla.rng import RngUse, generator
from la4vla.types import TextRow, UserError
from la4vla.vlm.generate import Writing, draw, write
from la4vla.vlm.model import rebuild
from la4vla.vlm.scores import score_answers, token_log_probs
from tests.vlm.conftest import row, small

HOT = Writing(max_tokens=8, temperature=1.0, top_p=0.95)


@pytest.fixture
def prompts(pair, rows):
    return [pair[1].question(item) for item in rows]


def test_greedy_tokens_are_those_of_a_loop_without_cache(pair, prompts):
    vlm, encoder = pair
    for prompt in prompts:
        (answer,) = write(vlm, encoder, [prompt], Writing(max_tokens=6))
        ids = list(prompt.ids_L)
        for number in answer.ids:
            logits = next_logits(vlm, encoder, prompt, ids)
            assert number == int(logits.index_fill(0, torch.tensor(encoder.never_written), -torch.inf).argmax())
            ids.append(torch.tensor(number))


@torch.no_grad()
def next_logits(vlm, encoder, prompt, ids):
    """By a plain forward over the whole row so far."""
    inputs = {
        name: torch.nn.functional.pad(value, (0, len(ids) - prompt.tokens))[None] if "token_type" in name else value
        for name, value in prompt.inputs.items()
    }
    tokens = torch.stack(ids)[None]
    return vlm.network(input_ids=tokens, attention_mask=torch.ones_like(tokens), **inputs).logits[0, -1]


@pytest.mark.parametrize("writing", [Writing(max_tokens=8), HOT], ids=["greedy", "hot"])
def test_alone_and_batched_write_the_same(pair, prompts, writing):
    vlm, encoder = pair
    together = write(vlm, encoder, prompts, writing, draws=(0, 1))
    alone = [answer for prompt in prompts for answer in write(vlm, encoder, [prompt], writing, draws=(0, 1))]
    few = write(vlm, encoder, prompts[::-1], writing, draws=(1,), rows_at_once=3)[::-1]
    assert [(a.key, a.draw, a.ids, a.text, a.ended) for a in together] == [
        (a.key, a.draw, a.ids, a.text, a.ended) for a in alone
    ]
    assert [a.ids for a in few] == [a.ids for a in together[1::2]]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-4, rtol=1e-4)


def test_draws_have_names(pair, prompts):
    vlm, encoder = pair
    (zero, one), again = (write(vlm, encoder, prompts[:1], HOT, seed=5, draws=d) for d in ((0, 1), (1, 0)))
    assert again == [one, zero]
    assert zero.ids != one.ids
    assert write(vlm, encoder, prompts[:1], HOT, seed=6)[0].ids != zero.ids


def test_log_probs_are_those_of_a_plain_forward(pair, prompts):
    """Of written answers token by token, and of given ones."""
    vlm, encoder = pair
    for answer, prompt in zip(write(vlm, encoder, prompts, HOT), prompts, strict=True):
        ids = list(prompt.ids_L)
        for number, log_prob in zip(answer.ids, answer.log_probs, strict=True):
            expected = next_logits(vlm, encoder, prompt, ids).log_softmax(-1)[number]
            assert abs(float(expected) - log_prob) < 1e-4
            ids.append(torch.tensor(number))


def test_given_answers_score_as_in_a_plain_forward(pair, rows):
    vlm, encoder = pair
    for score, item in zip(score_answers(vlm, encoder, rows, rows_at_once=3), rows, strict=True):
        prepared = encoder.prepare(item, answers="last")
        prompt = encoder.question(item)
        ids = list(prompt.ids_L)
        for number, log_prob in zip(prepared.ids_L[prompt.tokens :], score.log_probs, strict=True):
            assert abs(float(next_logits(vlm, encoder, prompt, ids).log_softmax(-1)[number]) - log_prob) < 1e-4
            ids.append(number)
        assert (score.key, score.question) == (item.key, item.question)


def test_blind_scores_do_not_see_the_image(pair):
    vlm, encoder = pair
    one, other = row(images=2), row(images=2)
    other = TextRow(one.key, one.turns, other.images[::-1], one.question)
    seen = [score_answers(vlm, encoder, [item])[0].total for item in (one, other)]
    blind = [score_answers(vlm, encoder, [item], blind=True)[0].total for item in (one, other)]
    assert seen[0] != seen[1]
    assert blind[0] == blind[1]


def test_no_token_of_an_image_is_ever_written(pair):
    vlm, encoder = pair
    image = encoder.never_written[-1]
    hook = ends(vlm, encoder, image)
    (answer,) = write(vlm, encoder, [encoder.question(row())], Writing(max_tokens=3, temperature=1.0))
    hook.remove()
    assert not set(answer.ids) & set(encoder.never_written)
    assert all(log_prob < -100 for log_prob in answer.log_probs), "the model itself finds anything else unlikely"
    assert not set(encoder.end_token_ids) & set(encoder.never_written)


def test_no_token_is_written_that_the_tokenizer_lacks():
    """Embedding tables are often longer."""
    vlm, encoder = small("internvl")
    config = copy.deepcopy(vlm.network.config)
    config.text_config.vocab_size += 8
    wide = rebuild({**vlm.description, "network": json.loads(config.to_json_string(use_diff=False))}).eval()
    torch.nn.utils.vector_to_parameters(torch.ones(sum(p.numel() for p in wide.parameters())), wide.parameters())
    hook = ends(wide, encoder, len(encoder.tokenizer) + 3)
    (answer,) = write(wide, encoder, [encoder.question(row())], Writing(max_tokens=3, temperature=1.0))
    hook.remove()
    assert max(answer.ids) < len(encoder.tokenizer)


# ---- when an answer ends


def ends(vlm, encoder, token):
    """A copy whose likeliest token, everywhere, is `token`."""
    head = vlm.network.lm_head
    return head.register_forward_hook(lambda module, args, out: out.index_fill(-1, torch.tensor([token]), 1e3))


@pytest.mark.parametrize("number", [0, 1])
def test_the_models_own_end_of_turn_ends_an_answer(number):
    vlm, encoder = small("gemma3")  # whose template ends turns with another token than its texts
    assert len(encoder.end_token_ids) == 2
    hook = ends(vlm, encoder, encoder.end_token_ids[number])
    (answer,) = write(vlm, encoder, [encoder.question(row())], Writing(max_tokens=5))
    hook.remove()
    assert (answer.text, answer.ids, answer.ended) == ("", (encoder.end_token_ids[number],), "turn")
    assert answer.log_probs == (0.0,)


def test_a_stop_text_ends_an_answer_and_others_go_on(pair):
    vlm, encoder = pair
    prompts = [encoder.question(row(f"t/{n}", question="Which? " * n)) for n in range(1, 5)]
    writing = Writing(max_tokens=12, temperature=1.5)
    free = write(vlm, encoder, prompts, writing)
    stop = next(answer.text[2:4] for answer in free if answer.text[2:4].strip() and len(answer.text) > 6)
    stopped = write(vlm, encoder, prompts, Writing(max_tokens=12, temperature=1.5, stop=(stop, "never written")))
    assert any(answer.ended == "stop" for answer in stopped)
    for one, other in zip(free, stopped, strict=True):
        if stop in one.text:
            assert other.text == one.text[: one.text.index(stop) + len(stop)]
            assert other.ended == "stop"
            assert other.ids == one.ids[: len(other.ids)]
        else:
            assert (other.text, other.ids, other.ended) == (one.text, one.ids, one.ended)


def test_an_answer_that_does_not_end_says_so():
    vlm, encoder = small("internvl")
    hook = ends(vlm, encoder, encoder.tokenizer.encode("a")[0])
    (answer,) = write(vlm, encoder, [encoder.question(row())], Writing(max_tokens=4))
    hook.remove()
    assert (answer.text, len(answer.ids), answer.ended) == ("aaaa", 4, "length")


# ---- the draw


def test_the_draw_follows_temperature_and_top_p():
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])
    numbers = torch.from_numpy(generator(0, RngUse.WRITE, "draw").random(20_000))
    for temperature, top_p, left in ((1.0, 1.0, 4), (0.5, 1.0, 4), (1.0, 0.8, 2), (2.0, 0.01, 1)):
        writing = Writing(max_tokens=1, temperature=temperature, top_p=top_p)
        drawn = draw(logits.expand(len(numbers), -1), numbers, writing).bincount(minlength=4) / len(numbers)
        probs = (logits / temperature).softmax(-1)
        kept = probs * (probs.argsort(descending=True).argsort() < left)
        torch.testing.assert_close(drawn, kept / kept.sum(), atol=0.01, rtol=0)
    assert int(draw(logits[None], torch.tensor([0.9999]).double(), Writing(1, temperature=0.0))) == 1


def test_pinned_draws():
    """The numbers behind every written token are part of the format: a reader may repeat a rollout."""
    numbers = generator(3, RngUse.WRITE, "texts/0", 2).random(3)
    assert numbers.round(6).tolist() == [0.668833, 0.903231, 0.020711]
    logits = torch.linspace(0, 3, 50).expand(3, -1)
    assert draw(logits, torch.from_numpy(numbers), HOT).tolist() == [34, 21, 49]


def test_bad_settings_and_training_mode_are_refused():
    vlm, encoder = small("internvl")
    for bad in ({"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"stop": ("",)}):
        with pytest.raises(UserError, match="give at least one token"):
            Writing(**{"max_tokens": 1, **bad})
    vlm.train()
    for call in (
        lambda: write(vlm, encoder, [encoder.question(row())], HOT),
        lambda: token_log_probs(vlm, encoder, [encoder.prepare(row())]),
    ):
        with pytest.raises(AssertionError, match=r"vlm\.eval"):
            call()
    vlm.eval()
