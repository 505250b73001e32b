"""Weights of others -> a policy: pretrained InternVL in the native `-hf` layout (a folder or hub repository with
config.json and safetensors), or a checkpoint of ours, of a policy or of a model that writes.

Strict: sizes are compared with the preset, every parameter must be found, nothing may be left over. Dropped, by name:
the language layers above the model's (FACTS 4.1 keeps 14 of 24), and the language head where the policy has none.
Nothing here runs remote code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from la4vla import manifest
from la4vla.model.base import is_checkpoint, some
from la4vla.model.presets import ModelSize
from la4vla.model.tokenizer import local_folder
from la4vla.types import UserError

FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json")
RENAMES = (  # the layout before transformers 4.53, still on the hub, then today's
    (re.compile(r"^language_model\.model\."), "language_model."),
    (re.compile(r"^model\."), ""),
)
LM_HEAD = re.compile(r"^(language_model\.)?lm_head\.")
EMBEDDINGS = "language_model.embed_tokens.weight"
LAYER = re.compile(r"^language_model\.layers\.(\d+)\.")


def load(policy: Any, where: str) -> set[str]:
    """Fills the parts of a Policy that the weights in `where` have, in fp32. Returns the names of these parts:
    `backbone`, perhaps `head` and `language_head`. Raises UserError when anything does not fit."""
    folder = local_folder(where, FILES)
    if is_checkpoint(folder):
        return _load_checkpoint(policy, folder)
    given = {"backbone"}
    load_internvl(policy.backbone.internvl, policy.size, where)
    if policy.writes and load_language_head(policy.language_head.weight, folder, where):
        given.add("language_head")
    return given


def load_internvl(internvl: nn.Module, size: ModelSize, where: str) -> None:
    """Fills `internvl` (transformers' InternVLModel) in place, cast to its dtype. Raises UserError when anything does
    not fit.
    """
    folder = local_folder(where, FILES)
    check_sizes(folder, size)
    targets = internvl.state_dict()
    missing, unexpected = set(targets), []
    for stored, file in _stored(folder):
        key = our_key(stored, size.llm_layers)
        if key is None:
            continue
        if key not in targets or tuple(file.get_slice(stored).get_shape()) != tuple(targets[key].shape):
            unexpected.append(stored)
            continue
        with torch.no_grad():
            targets[key].copy_(file.get_tensor(stored))
        missing.discard(key)
    if missing or unexpected:
        raise UserError(
            f"{where}: does not fit the preset: missing {some(missing)}, "
            f"unexpected {some(unexpected)}; give the native `-hf` checkpoint the preset was made for."
        )


@torch.no_grad()
def load_language_head(weight: Tensor, folder: Path, where: str) -> bool:
    """Fills the language head [vocab, width] with the folder's own, or with its embeddings where it says that they are
    the same. Returns whether it had one. Raises UserError for one of another size."""
    keys = {}
    for stored, _ in _stored(folder):
        keys["head" if LM_HEAD.match(stored) else our_key(stored, 0)] = stored
    name = keys.get("head")
    if name is None and json.loads((folder / "config.json").read_text()).get("tie_word_embeddings"):
        name = keys.get(EMBEDDINGS)
    for stored, file in _stored(folder):
        if stored == name:
            tensor = file.get_tensor(stored)
            if tensor.shape != weight.shape:
                raise UserError(
                    f"{where}: its language head is {list(tensor.shape)}, the preset's "
                    f"{list(weight.shape)}; "
                    "choose the preset made for these weights."
                )
            weight.copy_(tensor)
            return True
    return False


def truncated(where: str, size: ModelSize) -> int:
    """Language layers of a public folder that the preset leaves out: a head behind fewer sees features it never saw."""
    folder = local_folder(where, FILES)
    if is_checkpoint(folder):
        return 0
    return json.loads((folder / "config.json").read_text())["text_config"]["num_hidden_layers"] - size.llm_layers


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what a checkpoint without adapters holds; those of a model that writes have the names of a
    policy. Raises UserError for adapters and for a damaged file."""
    return {name: tuple(file.get_slice(stored).get_shape()) for name, stored, file in _whole(folder)}


@torch.no_grad()
def fill(policy: nn.Module, folder: Path, taken: Mapping[str, str]) -> None:
    """Copies weights of a checkpoint into a policy, cast to its dtype. taken: name in the policy -> name as
    `stored_shapes` has it."""
    targets, places = policy.state_dict(), {old: name for name, old in taken.items()}
    for name, stored, file in _whole(folder):
        if name in places:
            targets[places[name]].copy_(file.get_tensor(stored))


def _whole(folder: Path) -> Iterator[tuple[str, str, Any]]:
    """(name in a policy, name in the file, the open file) of every weight. Raises UserError for adapters."""
    made = manifest.read(folder)
    if made.base:
        raise UserError(
            f"{folder} holds adapters, and their weights lie elsewhere; `la4vla export {folder} OUT` makes one of both."
        )
    for stored, file in _stored(folder):
        yield _of_vlm(stored) if made.learner == "vlm" else stored, stored, file


def _load_checkpoint(policy: Any, folder: Path) -> set[str]:
    """Of a checkpoint without adapters. Raises UserError as `load`."""
    stored = {name: file.get_tensor(key) for name, key, file in _whole(folder)}
    targets = policy.state_dict()
    parts = {name.partition(".")[0] for name in stored} & {name.partition(".")[0] for name in targets}
    needed = {name for name in targets if name.partition(".")[0] in parts}
    dropped = {name for name in stored if name.startswith("language_head.")} - needed
    fits = {name for name in needed & stored.keys() if stored[name].shape == targets[name].shape}
    if "backbone" not in parts or fits != needed or stored.keys() - dropped != needed:
        raise UserError(
            f"{folder}: its weights do not fit this model: missing {some(needed - fits)}, unexpected "
            f"{some(stored.keys() - dropped - fits)}; use the model settings it was trained with."
        )
    with torch.no_grad():
        for name in needed:
            targets[name].copy_(stored[name])
    return parts


def _of_vlm(name: str) -> str:
    """A policy's name for a weight of a model that writes."""
    return name.replace("network.model.", "backbone.internvl.", 1).replace("network.lm_head.", "language_head.", 1)


def _stored(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name of every stored tensor, and the open file that has it. Raises UserError for a damaged one."""
    for path in _shards(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for stored in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    yield stored, file
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again.") from error


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
    except UserError:  # is a ValueError, too
        raise
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
        raise UserError(
            f"{path}: {text['num_hidden_layers']} language layers, the model asks for {size.llm_layers}; "
            "set model.llm_layers to as many as it has, or fewer."
        )


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
