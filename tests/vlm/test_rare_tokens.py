"""Why: a codec that writes digits as tokens of their own is only what it says if each is one token and nothing else
changes its spelling, least of all by way of a checkpoint."""

import pytest
import torch

from la4vla.types import UserError
from la4vla.vlm.rare_tokens import is_one_token, with_tokens
from la4vla.vlm.rows import ChatEncoder
from tests.vlm.conftest import row, small

DIGITS = [f"<digit_{digit}>" for digit in range(10)]
TEXT = "[[<digit_0>.<digit_1><digit_9>, -<digit_3>]]"


def test_each_name_is_one_token_and_texts_come_back(pair, tmp_path):
    vlm, encoder = pair
    assert not any(is_one_token(encoder, name) for name in DIGITS)
    renamed = with_tokens(encoder, DIGITS)
    assert all(is_one_token(renamed, name) for name in DIGITS)
    assert len(renamed.tokenizer) == len(encoder.tokenizer)
    prepared = renamed.prepare(row(answer=TEXT), answers="last")
    learned = prepared.labels_L[prepared.labels_L >= 0]
    assert "".join(renamed.decode(learned).split()) == TEXT.replace(" ", "")
    ids = renamed.tokenizer.convert_tokens_to_ids(DIGITS)
    assert ids == sorted(ids) and len(set(ids)) == 10
    assert max(ids) < vlm.network.config.text_config.vocab_size
    renamed.save(tmp_path)
    again = ChatEncoder.load(tmp_path, renamed.max_tokens)
    assert torch.equal(again.prepare(row(answer=TEXT)).ids_L, prepared.ids_L)
    assert with_tokens(again, DIGITS) is again


def test_all_other_ids_stay_and_any_text_is_spelled(pair):
    encoder = pair[1]
    renamed = with_tokens(encoder, DIGITS)
    before, after = encoder.tokenizer.get_vocab(), renamed.tokenizer.get_vocab()
    assert len(set(before) - set(after)) == 10
    assert all(after[token] == number for token, number in before.items() if token in after)
    for text in ("Move the arm up, then close.", "ねこ 50% \n x", *before):
        ids = renamed.tokenizer.encode(text)
        if not renamed._special.search(text) and "Ġ" not in text:
            assert renamed.tokenizer.decode(ids) == encoder.tokenizer.decode(encoder.tokenizer.encode(text))


def test_free_tokens_go_first():
    encoder = small("tiny_vlm")[1]
    renamed = with_tokens(encoder, DIGITS)
    gone = set(encoder.tokenizer.get_vocab()) - set(renamed.tokenizer.get_vocab())
    assert gone == {f"<unused{number}>" for number in range(54, 64)}
    assert with_tokens(encoder, ["<unused3>", "<unused4>"]) is encoder
    mixed = with_tokens(encoder, ["<unused63>", "<digit_0>"])
    assert is_one_token(mixed, "<unused63>") and is_one_token(mixed, "<digit_0>")


def test_too_few_rare_tokens_are_one_sentence():
    encoder = small("internvl")[1]
    with pytest.raises(UserError, match="tokens to spare, 5000 are needed"):
        with_tokens(encoder, [f"<action_{number}>" for number in range(5000)])
    with pytest.raises(UserError, match="cannot hold"):
        with_tokens(encoder, ["<|im_end|>"])
