"""Why: ids must be those the pretrained weights know, an image has exactly P tokens, and nothing is ever truncated."""

import json
import os
import pickle
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from la4vla.config import ModelConfig
from la4vla.model import train_tokenizer
from la4vla.model.presets import LA4VLA_1B, TINY
from la4vla.model.tokenizer import TINY_TOKENIZER, Prompter, build_prompter
from la4vla.types import UserError

BESIDE = Path(__file__).parents[3] / "shared" / "qwen2.5-tokenizer"  # a folder beside the checkout
QWEN = Path(os.environ.get("LA4VLA_QWEN_TOKENIZER") or BESIDE)
needs_qwen = pytest.mark.skipif(
    QWEN == BESIDE and not BESIDE.is_dir(),
    reason="needs the Qwen2.5 tokenizer; set LA4VLA_QWEN_TOKENIZER to a folder that holds its tokenizer.json",
)


@pytest.fixture
def prompter():
    return build_prompter(ModelConfig())


def test_la_rows_have_no_image_token(prompter):
    ids = prompter.encode("push the puck to a goal")
    assert prompter.tokenizer.decode(ids) == "push the puck to a goal"
    assert TINY.image_token_id not in ids


def test_image_slots_come_first_in_order_and_absent_views_have_no_tokens(prompter):
    ids = prompter.encode("lift", (0, 2))
    text = prompter.tokenizer.decode(ids, skip_special_tokens=False)
    slot = "<img>" + "<IMG_CONTEXT>" * TINY.image_tokens + "</img>"
    assert text == f"image-1: {slot}\nimage-3: {slot}\nlift"
    assert ids.count(TINY.image_token_id) == 2 * TINY.image_tokens
    assert ids[-1:] == prompter.encode("lift")[-1:]


def test_too_long_is_an_error_not_a_cut(prompter):
    with pytest.raises(UserError, match="192; shorten"):
        prompter.encode("push the puck " * 70)
    with pytest.raises(UserError, match="8 images"):
        prompter.encode("lift", range(8))
    assert len(prompter.encode("lift", range(7))) <= 192


@pytest.mark.parametrize("trick", ["<IMG_CONTEXT>", "lift <img> the </img> cup", "<|endoftext|>"])
def test_special_tokens_in_an_instruction_are_text(prompter, trick):
    assert not {0, 1, 2, 3} & set(prompter.encode(trick))


def test_an_empty_instruction_is_one_token_with_or_without_images(prompter):
    assert prompter.encode("  ") == [TINY.pad_token_id]
    assert prompter.encode("", (0,))[-1] == TINY.pad_token_id


def test_case_and_surrounding_space_do_not_matter_to_tiny(prompter):
    assert prompter.encode(" Push the puck \n") == prompter.encode("push the puck")


def test_any_text_is_encodable(prompter):
    text = "ねこ — 50% & <cup>"
    assert prompter.tokenizer.decode(prompter.encode(text)) == text


def test_pickle_and_folder_roundtrip(prompter, tmp_path):
    prompter.save(tmp_path)
    for again in (pickle.loads(pickle.dumps(prompter)), Prompter.load(tmp_path, TINY.spec)):
        assert again.encode("move up <img>", (1,)) == prompter.encode("move up <img>", (1,))


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(UserError, match="point model"):
        Prompter.load(tmp_path, TINY.spec)


def test_full_size_needs_a_tokenizer_and_the_right_one():
    with pytest.raises(UserError, match="has no tokenizer of its own"):
        build_prompter(ModelConfig(preset="la4vla_1b"))
    with pytest.raises(UserError, match="151667"):
        build_prompter(ModelConfig(preset="la4vla_1b", tokenizer=str(TINY_TOKENIZER)))


def test_a_tokenizer_with_more_words_than_the_model_has_rows_is_refused(tmp_path, prompter):
    """Words, not special tokens: the native InternVL folder has `<video>`, one past the last row."""
    larger = Tokenizer.from_str(prompter.tokenizer.to_str())
    larger.add_special_tokens([AddedToken(f"<video{number}>", special=True) for number in range(900)])
    larger.save(str(tmp_path / "tokenizer.json"))
    assert max(build_prompter(ModelConfig(tokenizer=str(tmp_path))).encode("lift <video899>")) < 1024, "spelled out"
    larger.add_tokens([f"word{number}" for number in range(900)])
    larger.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"ids up to 2543, preset tiny takes 1024"):
        build_prompter(ModelConfig(tokenizer=str(tmp_path)))


def test_a_place_that_does_not_exist_is_an_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nowhere/at-all: neither a folder nor a hub"):
        build_prompter(ModelConfig(tokenizer="nowhere/at-all"))


def test_a_damaged_tokenizer_is_one_sentence(tmp_path, prompter):
    prompter.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer .*; fetch the file again"):
        build_prompter(ModelConfig(tokenizer=str(tmp_path)))


def test_the_committed_tokenizer_is_what_the_script_makes():
    committed = json.loads((TINY_TOKENIZER / "tokenizer.json").read_text())
    assert json.loads(train_tokenizer.build().to_str()) == committed


def test_robot_words_are_single_tokens(prompter):
    """Else a tiny model spends its 4 layers on spelling."""
    for sentence in ("move the empty gripper up slowly", "lift the object upward while holding it"):
        assert len(prompter.encode(sentence)) == len(sentence.split())


@needs_qwen
def test_full_size_ids_are_the_released_ones():
    prompter = build_prompter(ModelConfig(preset="la4vla_1b", tokenizer=str(QWEN)))
    ids = prompter.encode("pick up the cup", (0, 1))
    assert (ids.count(151_665), ids.count(151_666), ids.count(151_667), 151_643 in ids) == (2, 2, 512, False)
    assert max(ids) < LA4VLA_1B.vocab
    with pytest.raises(UserError, match="1024"):
        prompter.encode("pick up the cup", range(4))


@needs_qwen
@pytest.mark.parametrize("slots", [(), (0,), (0, 1, 2)])
def test_rows_equal_tokenising_the_whole_released_prompt(slots):
    """We join pieces; the release tokenised one string. The ids must agree."""
    whole = Tokenizer.from_file(str(QWEN / "tokenizer.json"))
    whole.add_special_tokens(["<img>", "</img>", "<IMG_CONTEXT>"])
    instruction = "Lift the object upward, then turn it 90 degrees."
    prompt = "".join(f"Image-{slot + 1}: <img>{'<IMG_CONTEXT>' * 256}</img>\n" for slot in slots) + instruction
    prompter = build_prompter(ModelConfig(preset="la4vla_1b", tokenizer=str(QWEN)))
    assert prompter.encode(instruction, slots) == whole.encode(prompt).ids
