"""Two small grounding runs, one of which is not shown the scene; small random CLIP and SigLIP of the real classes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from tests.train.conftest import run_here
from tests.train.launch import Ended
from tests.train.pairs import COLOURS, WAYS, write_config, write_pairs

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = ["[UNK]", "<pad>", "<end>", "push", "the", "cube", *COLOURS, *WAYS]
SIDE = 16
QUICK = ("checkpoint.every_steps=4", "checkpoint.keep_last=1", "checkpoint.keep_every=4", "stages.only.micro_batch=8")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "clips", 0, 48)
    write_pairs(folder / "held_out", 100, 24)
    return folder


@pytest.fixture(scope="session")
def run(pairs) -> Path:
    config = write_config(pairs, "seeing", steps=40)
    assert run_here(str(config), *QUICK) == 0
    return pairs / "seeing"


@pytest.fixture(scope="session")
def blind_run(pairs) -> Path:
    config = write_config(pairs, "blind", steps=40)
    assert run_here(str(config), *QUICK, "grounding.vision=false", "stages.only.train=[text,head]") == 0
    return pairs / "blind"


@pytest.fixture(scope="session")
def public(tmp_path_factory) -> Path:
    """Folders `clip` and `siglip`, as their models are published."""
    folder = tmp_path_factory.mktemp("public")
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="[UNK]")
    text = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 8, "pad_token_id": 1, "eos_token_id": 2}
    vision = {**SMALL, "image_size": SIDE, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    siglip = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision))
    for name, model, processor in (
        ("clip", clip, CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})),
        ("siglip", siglip, SiglipImageProcessor(size={"height": SIDE, "width": SIDE})),
    ):
        for part in (model, fast, processor):
            part.save_pretrained(folder / name)
    return folder


@pytest.fixture
def in_process(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """A training run in this process, with what it printed."""
    return lambda *arguments: Ended((run_here(*arguments),), *capfd.readouterr())
