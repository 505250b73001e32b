"""The preset `tiny_vlm`: a real InternVL with a language head, some 2.2 M parameters, that trains on a laptop.

Its vision tower, projector and language model have the sizes and token ids of the tiny policy, and from the same seed
the same weights: a policy of preset `tiny` takes them from its exported folder (`model.weights`). The language head is
a matrix of its own, as InternVL3-1B has it. Text is lower-cased by its tokenizer, also in answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from la4vla.model import init
from la4vla.model.backbone import IMAGENET_MEAN, IMAGENET_STD, internvl_config
from la4vla.model.presets import TINY
from la4vla.model.tokenizer import FILE, IMAGE_CLOSE, IMAGE_CONTEXT, IMAGE_OPEN, PAD
from la4vla.vlm.model import VlmModel, empty_network
from la4vla.vlm.rows import ChatEncoder
from la4vla.vlm.train_tokenizer import ASSETS, TURN_END, VIDEO

CHAT_TEMPLATE = "chat_template.jinja"
MAX_TOKENS = 1024  # rotary positions have no table; the longest prompt of the paper and three images are some 400


def build_tiny(seed: int, attention: str = "sdpa") -> VlmModel:
    """On the CPU in fp32, random weights that are the same for a seed."""
    config = internvl_config(TINY, attention)
    tokenizer = Tokenizer.from_file(str(ASSETS / FILE))
    end, pad = tokenizer.token_to_id(TURN_END), TINY.pad_token_id
    text: Any = config.text_config
    text.use_cache, text.eos_token_id, text.pad_token_id = True, end, pad
    vlm = VlmModel(empty_network(config, attention), MAX_TOKENS)
    vlm.network.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    init.init_weights(vlm.network.model, "backbone.internvl", seed)
    init.init_weights(vlm.network.lm_head, "lm_head", seed)
    return vlm


def tiny_encoder() -> ChatEncoder:
    """The preset's own tokenizer, chat template and images of 112 x 112 pixels."""
    side = {"height": TINY.image_size, "width": TINY.image_size}
    pixels = {"size": side, "image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(ASSETS / FILE)),
        pad_token=PAD,
        eos_token=TURN_END,
        model_max_length=MAX_TOKENS,
        extra_special_tokens={
            "start_image_token": IMAGE_OPEN,
            "end_image_token": IMAGE_CLOSE,
            "context_image_token": IMAGE_CONTEXT,
            "video_token": VIDEO,
        },
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(crop_to_patches=False, min_patches=1, max_patches=1, **pixels),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**pixels),
        image_seq_length=TINY.image_tokens,
        chat_template=(Path(ASSETS) / CHAT_TEMPLATE).read_text().removesuffix("\n"),
    )
    return ChatEncoder(processor, MAX_TOKENS)
