"""Small random models of the real classes of every family, with processors made offline, and conversations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from la4vla.types import TextRow, Turn
from la4vla.vlm.load import build_vlm
from la4vla.vlm.model import VlmModel, empty_network
from la4vla.vlm.rows import ChatEncoder

MAX_TOKENS = 300
CORPUS = ["Move the arm up, then close the gripper.", "What colour is the block? Yes, no, red.", "user assistant model"]
QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INTERNVL_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<IMG_CONTEXT>\n{% elif c['type'] == 'text' %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = m['content'][0]['text'] + '\n\n' %}{% else %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ ns.system }}{% set ns.system = '' %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] | trim }}"
    "{% endif %}{% endfor %}<end_of_turn>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tokenizer(pad: str, eos: str, special: list[str], named: dict[str, str], bos: str | None = None):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[pad, eos, *special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, eos_token=eos, bos_token=bos, extra_special_tokens=named
    )


def internvl():
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer("<|endoftext|>", "<|im_end|>", ["<|im_start|>", *named.values()], named)
    side = {"height": 56, "width": 56}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=side),
        tokenizer=words,
        video_processor=transformers.InternVLVideoProcessor(size=side),
        image_seq_length=4,
        chat_template=INTERNVL_TEMPLATE,
    )
    config = transformers.InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": [56, 56],
            "patch_size": [14, 14],
            "attention_bias": True,
        },
        text_config={"model_type": "qwen2", **text_sizes(words)},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return config, processor


def gemma3():
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = tokenizer(
        "<pad>", "<eos>", ["<bos>", "<start_of_turn>", "<end_of_turn>", *named.values()], named, bos="<bos>"
    )
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=words,
        image_seq_length=4,
        chat_template=GEMMA_TEMPLATE,
    )
    number = words.convert_tokens_to_ids
    config = transformers.Gemma3Config(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": 56,
            "patch_size": 14,
        },
        text_config={**text_sizes(words), "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
        mm_tokens_per_image=4,
        boi_token_index=number("<start_of_image>"),
        eoi_token_index=number("<end_of_image>"),
        image_token_index=number("<image_soft_token>"),
    )
    return config, processor


QWEN_NAMED = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}


def qwen_words():
    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", *QWEN_NAMED.values()]
    return tokenizer("<|endoftext|>", "<|im_end|>", special, QWEN_NAMED)


def qwen_ids(words):
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: words.convert_tokens_to_ids(token) for name, token in names.items()}


def qwen2_5_vl():
    words = qwen_words()
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112),
        tokenizer=words,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=QWEN_TEMPLATE,
    )
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 32,
            "depth": 2,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        text_config={**text_sizes(words), "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        tie_word_embeddings=True,
        **qwen_ids(words),
    )
    return config, processor


def qwen3_vl():
    words = qwen_words()
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(
            patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 128 * 128}
        ),
        tokenizer=words,
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=QWEN_TEMPLATE,
    )
    config = transformers.Qwen3VLConfig(
        vision_config={
            "hidden_size": 32,
            "depth": 2,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        text_config={
            **text_sizes(words),
            "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        },
        tie_word_embeddings=True,
        **qwen_ids(words),
    )
    return config, processor


def text_sizes(words):
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "vocab_size": len(words),
        "max_position_embeddings": 512,
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id,
    }


MAKERS: dict[str, Callable] = {
    "internvl": internvl,
    "gemma3": gemma3,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
}


@cache
def small(family: str) -> tuple[VlmModel, ChatEncoder]:
    """Weights are wide enough that the words of a prompt matter for what is written."""
    if family == "tiny_vlm":
        vlm, encoder = build_vlm("tiny_vlm", seed=0)
    else:
        config, processor = MAKERS[family]()
        vlm, encoder = VlmModel(empty_network(config, "sdpa"), MAX_TOKENS), ChatEncoder(processor, MAX_TOKENS)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in vlm.named_parameters():
                parameter.normal_(0.0, 0.1, generator=generator)
                if "norm" in name and name.endswith("weight") and family != "gemma3":
                    parameter.add_(1.0)
    return vlm.eval(), encoder


FAMILIES = [*MAKERS, "tiny_vlm"]


@pytest.fixture(params=FAMILIES)
def pair(request) -> tuple[VlmModel, ChatEncoder]:
    return small(request.param)


def picture(seed: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A smooth pattern of its own."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + seed + c)) + np.cos(y / (3 + 2 * seed + c)) for c in range(3)]
    return ((np.stack(waves, axis=-1) + 2) * 63).astype(np.uint8)


def row(
    key: str = "texts/0", answer: str = "Move the arm up.", images: int = 1, question: str = "What next?"
) -> TextRow:
    turns = (Turn("user", question, tuple(range(images))), Turn("assistant", answer))
    return TextRow(key, turns, tuple(picture(number) for number in range(images)), "next")


@pytest.fixture
def rows() -> list[TextRow]:
    """One image, two images, none; of different length."""
    talk = TextRow(
        "texts/3",
        (
            Turn("system", "Be short."),
            Turn("user", "What colour is it?", (1,)),
            Turn("assistant", "red"),
            Turn("user", "And this?", (0,)),
            Turn("assistant", "\n\nblue, 0.12"),
        ),
        (picture(3), picture(4, 72, 72)),
        "scene",
    )
    return [row(), row("texts/1", "[[0.01, -0.02]]", 2), row("texts/2", "yes", 0, "Is the gripper open?"), talk]
