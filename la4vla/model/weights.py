"""Pretrained InternVL weights in the native `-hf` layout -> our backbone: a folder or hub repository with config.json
and safetensors.

Strict: sizes are compared with the preset, every parameter must be found, nothing may be left over. Dropped, by name:
the language-model head and the language layers above the preset's (FACTS 4.1 keeps 14 of 24). Nothing here runs remote
code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from la4vla.model.presets import ModelSize
from la4vla.model.tokenizer import local_folder
from la4vla.types import UserError

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json")
RENAMES = (  # the layout before transformers 4.53, still on the hub, then today's
    (re.compile(r"^language_model\.model\."), "language_model."),
    (re.compile(r"^model\."), ""),
)
LM_HEAD = re.compile(r"^(language_model\.)?lm_head\.")
LAYER = re.compile(r"^language_model\.layers\.(\d+)\.")


def load_internvl(internvl: nn.Module, size: ModelSize, where: str) -> None:
    """Fills `internvl` (transformers' InternVLModel) in place, cast to its dtype. Raises UserError when anything does
    not fit.
    """
    folder = local_folder(where, FILES)
    check_sizes(folder, size)
    targets = internvl.state_dict()
    missing, unexpected = set(targets), []
    for path in _shards(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    key = our_key(stored, size.llm_layers)
                    if key is None:
                        continue
                    if key not in targets or tuple(file.get_slice(stored).get_shape()) != tuple(targets[key].shape):
                        unexpected.append(stored)
                        continue
                    with torch.no_grad():
                        targets[key].copy_(file.get_tensor(stored))
                    missing.discard(key)
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again.") from error
    if missing or unexpected:
        raise UserError(
            f"{where}: does not fit the preset: missing {_some(sorted(missing))}, "
            f"unexpected {_some(sorted(unexpected))}; give the native `-hf` checkpoint the preset was made for."
        )


def our_key(stored: str, llm_layers: int) -> str | None:
    """The name in InternVLModel of a stored tensor; None for what is dropped."""
    if LM_HEAD.match(stored):
        return None
    for pattern, replacement in RENAMES:
        stored = pattern.sub(replacement, stored)
    layer = LAYER.match(stored)
    return None if layer and int(layer.group(1)) >= llm_layers else stored


def check_sizes(folder: Path, size: ModelSize) -> None:
    """Compares config.json with the preset. Raises UserError with the first size that differs."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json in it; model.weights is a checkpoint in the native `-hf` layout.")
    try:
        _compare(path, size)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); fetch the checkpoint again.") from error


def _compare(path: Path, size: ModelSize) -> None:
    raw = json.loads(path.read_text())
    if raw.get("model_type") != "internvl":
        raise UserError(f"{path}: model_type is `{raw.get('model_type')}`, not `internvl`; give the `-hf` conversion.")
    vision, text = raw["vision_config"], raw["text_config"]
    rope = text.get("rope_parameters") or text
    expected: dict[str, tuple[Any, Any]] = {
        "vision hidden_size": (vision["hidden_size"], size.vision_width),
        "vision num_hidden_layers": (vision["num_hidden_layers"], size.vision_layers),
        "vision num_attention_heads": (vision["num_attention_heads"], size.vision_heads),
        "vision image_size": (_side(vision["image_size"]), size.image_size),
        "vision patch_size": (_side(vision["patch_size"]), size.patch_size),
        "vision use_qk_norm": (vision.get("use_qk_norm", False), False),
        "downsample_ratio": (raw.get("downsample_ratio", 0.5), 1 / size.shuffle),
        "text hidden_size": (text["hidden_size"], size.width),
        "text num_attention_heads": (text["num_attention_heads"], size.llm_heads),
        "text num_key_value_heads": (text["num_key_value_heads"], size.kv_heads),
        "text rope_theta": (float(rope["rope_theta"]), size.rope_theta),
        "text vocab_size": (text["vocab_size"], size.vocab),
    }
    for name, (stored, needed) in expected.items():
        if stored != needed:
            raise UserError(
                f"{path}: {name} is {stored}, the preset has {needed}; choose the preset made for these weights."
            )
    if text["num_hidden_layers"] < size.llm_layers:
        raise UserError(f"{path}: {text['num_hidden_layers']} language layers, the preset needs {size.llm_layers}.")


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: damaged ({error}); fetch the checkpoint again.") from error
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; fetch the checkpoint again.")
    return [folder / name for name in names]


def _side(value: int | list[int]) -> int:
    return value if isinstance(value, int) else value[0]


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "none"
