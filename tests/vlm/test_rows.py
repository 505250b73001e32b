"""Why: a label on a prompt teaches the model to ask, a prompt that is tokenized otherwise than in training is out of
distribution, and both go unseen. All on the real processors of every family."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, InternVLProcessor

from la4vla.types import NOT_COUNTED, TextRow, Turn, UserError
from la4vla.vlm.rare_tokens import with_tokens
from la4vla.vlm.rows import ChatEncoder, without_images
from tests.vlm.conftest import MAKERS, MAX_TOKENS, internvl, picture, row, small

BESIDE = Path(__file__).parents[3] / "shared" / "qwen2.5-tokenizer"  # a folder beside the checkout
FULL_SIZE = Path(os.environ.get("LA4VLA_QWEN_TOKENIZER") or BESIDE)


def learned(encoder, prepared):
    return encoder.tokenizer.decode(prepared.labels_L[prepared.labels_L != NOT_COUNTED])


def end(encoder):
    return encoder.tokenizer.decode([encoder.end_token_ids[0]])


def test_only_answers_and_the_end_of_their_turns_are_learned(pair, rows):
    encoder = pair[1]
    for item in rows:
        answers = [turn.text.strip() for turn in item.turns if turn.role == "assistant"]
        text = "".join(answer + end(encoder) for answer in answers)
        prepared = encoder.prepare(item)
        assert learned(encoder, prepared) in (text, text.lower())  # tiny_vlm writes lower case
        counts = prepared.labels_L != NOT_COUNTED
        assert torch.equal(prepared.labels_L[counts], prepared.ids_L[counts])
        assert prepared.ids_L[-1] == encoder.end_token_ids[0]


def test_the_last_answer_alone(pair, rows):
    encoder = pair[1]
    every, last = encoder.prepare(rows[3]), encoder.prepare(rows[3], answers="last")
    assert learned(encoder, last) == "blue, 0.12" + end(encoder)
    assert torch.equal(every.ids_L, last.ids_L)


def test_a_prompt_is_the_beginning_of_its_row(pair, rows):
    """Also where the answer begins with what would merge with the line break before it."""
    encoder = pair[1]
    for item in rows:
        prompt, whole = encoder.question(item), encoder.prepare(item, answers="last")
        assert torch.equal(prompt.ids_L, whole.ids_L[: prompt.tokens])
        assert (prompt.labels_L == NOT_COUNTED).all()
        assert (whole.labels_L[prompt.tokens :] != NOT_COUNTED).all()


def test_rows_are_what_the_library_makes_of_the_whole_conversation(pair, rows):
    """We encode pieces; the processor takes one text. Behind our last token it has the template's line break."""
    encoder = pair[1]
    for item in rows:
        messages = [
            {"role": turn.role, "content": [*[{"type": "image"}] * len(turn.images), {"type": "text", "text": text}]}
            for turn in item.turns
            if (text := turn.text.strip())
        ]
        text = encoder.processor.apply_chat_template(messages, tokenize=False)
        shown = [item.images[number] for turn in item.turns for number in turn.images]
        options = {"crop_to_patches": False} if "InternVL" in type(encoder.processor).__name__ and shown else {}
        images = [np.ascontiguousarray(image) for image in shown] or None
        whole = encoder.processor(
            images=images, text=[text], add_special_tokens=False, return_tensors="pt", input_data_format=None, **options
        )
        prepared = encoder.prepare(item)
        assert torch.equal(whole["input_ids"][0, : prepared.tokens], prepared.ids_L)
        assert set(whole) - {"input_ids", "attention_mask"} == set(prepared.inputs)
        for name, tensor in prepared.inputs.items():
            expected = whole[name][0, : prepared.tokens] if name.endswith("token_type_ids") else whole[name]
            assert torch.equal(expected, tensor), name


def test_every_image_has_its_tokens(pair):
    encoder = pair[1]
    number = encoder.tokenizer.convert_tokens_to_ids(
        {"Gemma3Processor": "<image_soft_token>"}.get(type(encoder.processor).__name__, encoder.processor.image_token)
    )
    counts = [int((encoder.prepare(row(images=images)).ids_L == number).sum()) for images in (0, 1, 3)]
    assert counts[0] == 0 < counts[1]
    assert counts[2] == 3 * counts[1]


def test_large_images_are_one_tile():
    encoder = small("internvl")[1]
    wide = replace(row(), images=(picture(0, 300, 900),))
    assert encoder.prepare(wide).inputs["pixel_values"].shape == (1, 3, 56, 56)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_holds_its_rows(pair, rows, side):
    encoder = pair[1]
    prepared = [encoder.prepare(item) for item in rows]
    batch = encoder.batch(prepared, side)
    assert batch.keys == tuple(item.key for item in rows)
    flat = batch.labels_BL.flatten()
    assert torch.equal(flat[batch.answer_index], flat[flat != NOT_COUNTED])
    assert batch.counted == sum(int((item.labels_L != NOT_COUNTED).sum()) for item in prepared)
    for line, item in enumerate(prepared):
        mask = batch.text_mask_BL[line]
        assert torch.equal(batch.input_ids_BL[line][mask], item.ids_L)
        assert (batch.input_ids_BL[line][~mask] == encoder.pad_token_id).all()
        assert bool(mask[0 if side == "right" else -1]) and int(mask.sum()) == item.tokens
    for name, tensor in batch.images.items():
        if name.endswith("token_type_ids"):
            assert torch.equal(tensor[batch.text_mask_BL], torch.cat([item.inputs[name] for item in prepared]))
        else:
            assert torch.equal(tensor, torch.cat([item.inputs[name] for item in prepared if name in item.inputs]))


def test_a_batch_without_images_has_none(pair):
    names = set(pair[1].batch([pair[1].prepare(row(images=0))]).images)
    assert names <= {"token_type_ids", "mm_token_type_ids"}


def test_pickles_and_folders_give_the_same_rows(pair, rows, tmp_path):
    encoder = pair[1]
    encoder.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(encoder.files())
    for again in (pickle.loads(pickle.dumps(encoder)), ChatEncoder.load(tmp_path, encoder.max_tokens)):
        for item in rows:
            one, other = encoder.prepare(item), again.prepare(item)
            assert torch.equal(one.ids_L, other.ids_L) and torch.equal(one.labels_L, other.labels_L)
            assert {name: value.sum() for name, value in one.inputs.items()} == {
                name: value.sum() for name, value in other.inputs.items()
            }
        assert again.files() == encoder.files()


def test_threads_share_an_encoder(pair, rows):
    encoder = pair[1]
    expected = [encoder.prepare(item).ids_L for item in rows]
    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(encoder.prepare, rows * 8))
    assert all(torch.equal(expected[number % 4], item.ids_L) for number, item in enumerate(prepared))


def test_blind_rows_have_the_words_and_no_image(pair, rows):
    encoder = pair[1]
    blind = without_images(rows[3])
    assert not blind.images
    assert learned(encoder, encoder.prepare(blind)) == learned(encoder, encoder.prepare(rows[3]))
    assert "pixel_values" not in encoder.prepare(blind).inputs


def test_bad_rows_are_one_sentence(pair):
    encoder = pair[1]
    good = row("texts/7")
    bad = {
        "tokens, the model takes": row("texts/7", answer="up and down " * 600),
        "an answer is empty": row("texts/7", answer=" \n"),
        "last turn is no answer": replace(good, turns=good.turns[:1]),
        "image 1 is missing, the row has 0": replace(good, images=()),
        "no turn shows image 2": replace(good, images=(picture(0), picture(1))),
        "spells the special token": row("texts/7", answer=f"up {end(encoder)} down"),
    }
    for reason, item in bad.items():
        with pytest.raises(UserError, match=f"texts/7: .*{reason}"):
            encoder.prepare(item)
    with pytest.raises(UserError, match="texts/7: the last turn is not the user's"):
        encoder.prompt("texts/7", good.turns, good.images)


@pytest.mark.parametrize("family", MAKERS)
def test_a_template_without_places_for_images_is_refused(family):
    processor = MAKERS[family]()[1]
    processor.chat_template = (
        processor.chat_template.replace("c['type'] == 'image'", "false")
        .replace("elif c['type'] == 'text'", "else")
        .replace("elif 'text' in c", "elif 'text' in c and c['text']")
        .replace("{% else %}{{ c['text'] | trim }}", "{% elif 'text' in c %}{{ c['text'] | trim }}")
    )
    encoder = ChatEncoder(processor, MAX_TOKENS)
    assert encoder.prepare(row(images=0)).tokens
    with pytest.raises(UserError, match="texts/0: the chat template has places for 0 of 1 images; use a model"):
        encoder.prepare(row())


def test_templates_that_cannot_be_learned_from_are_refused():
    processor = internvl()[1]
    template = processor.chat_template
    processor.chat_template = template.replace("<|im_end|>", "END")
    with pytest.raises(UserError, match="no special token"):
        ChatEncoder(processor, MAX_TOKENS)
    processor.chat_template = template.replace("{% for m in", "{{ messages | length }}{% for m in")
    with pytest.raises(UserError, match="no special token"):
        ChatEncoder(processor, MAX_TOKENS)
    processor.chat_template = "{{ raise_exception('roles must alternate') if messages | length > 3 }}" + template
    talk = TextRow("t/0", (Turn("user", "a"), Turn("assistant", "b")) * 2, (), "scene")
    with pytest.raises(UserError, match=r"t/0: the chat template refuses the conversation \(roles must alternate\)"):
        ChatEncoder(processor, MAX_TOKENS).prepare(talk)
    processor.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        ChatEncoder(processor, MAX_TOKENS)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    """As templates do that drop the thoughts of all answers but the last."""
    processor = internvl()[1]
    processor.chat_template = processor.chat_template.replace(
        "{{ c['text'] }}", "{{ c['text'] if m == messages[-1] or m['role'] == 'user' else 'gone' }}"
    )
    encoder = ChatEncoder(processor, MAX_TOKENS)
    assert encoder.prepare(row()).tokens
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "a"), Turn("assistant", "c"))
    talk = TextRow("t/0", turns, (), "scene")
    with pytest.raises(UserError, match="t/0: the chat template writes turn 2 otherwise"):
        encoder.prepare(talk)


def test_a_folder_without_a_processor_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no processor in it that can be read"):
        ChatEncoder.load(tmp_path, MAX_TOKENS)


def test_a_fresh_process_takes_an_encoder_and_loads_no_model():
    """As the loader's does. Models would cost it seconds and hundreds of MB."""
    script = (
        "import pickle, sys\n"
        "encoder, row = pickle.load(sys.stdin.buffer)\n"
        "print(encoder.prepare(row).ids_L.tolist())\n"
        "print([name for name in sys.modules if 'modeling_internvl' in name or name == 'la4vla.model'])"
    )
    encoder, item = small("internvl")[1], row(images=2)
    sent = pickle.dumps((encoder, item))
    printed = subprocess.run(
        [sys.executable, "-c", script], input=sent, check=True, capture_output=True
    ).stdout.decode()
    assert printed.splitlines() == [str(encoder.prepare(item).ids_L.tolist()), "[]"]


@pytest.mark.skipif(
    not FULL_SIZE.is_dir(), reason="needs the Qwen2.5 tokenizer; set LA4VLA_QWEN_TOKENIZER to its folder"
)
def test_the_full_size_tokenizer_of_internvl():
    """Ids of the public model, a prompt that is the beginning of its row, and digits as its rarest tokens."""
    processor = internvl()[1]
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    words = AutoTokenizer.from_pretrained(FULL_SIZE, extra_special_tokens={**named, "video_token": "<video>"})
    full = InternVLProcessor(
        processor.image_processor, words, processor.video_processor, 256, chat_template=processor.chat_template
    )
    encoder = ChatEncoder(full, 1024)
    assert (encoder.end_token_ids, encoder.pad_token_id) == ((151_645,), 151_643)
    item = row(answer="\n\n[[0.01, -0.02]]", images=2)
    prompt, whole = encoder.question(item), encoder.prepare(item)
    assert torch.equal(prompt.ids_L, whole.ids_L[: prompt.tokens])
    assert int((whole.ids_L == 151_667).sum()) == 512
    assert learned(encoder, whole) == "[[0.01, -0.02]]<|im_end|>"
    digits = [f"<digit_{digit}>" for digit in range(10)]
    renamed = with_tokens(encoder, digits)
    assert renamed.tokenizer.convert_tokens_to_ids(digits) == list(range(151_633, 151_643))
