"""Models that write, by preset or from a folder in transformers' own layout, each with its encoder.

    vlm, encoder = build_vlm("tiny_vlm", seed=0)             random weights
    vlm, encoder = load_vlm("weights/gemma-3-4b-it")         a folder or hub id
    save_vlm(vlm, encoder, folder)                           a folder that `from_pretrained` takes

Refuses: families other than those of la4vla/vlm/model.py, code that comes with a model, weights that do not fill the
model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText

from la4vla.model.tokenizer import local_folder
from la4vla.types import UserError
from la4vla.vlm.model import VlmModel, check_family
from la4vla.vlm.rows import ChatEncoder
from la4vla.vlm.tiny import build_tiny, tiny_encoder

PRESETS: dict[str, tuple[Callable[[int, str], VlmModel], Callable[[], ChatEncoder]]] = {
    "tiny_vlm": (build_tiny, tiny_encoder),
}
FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def build_vlm(preset: str, seed: int, attention: str = "sdpa") -> tuple[VlmModel, ChatEncoder]:
    """Random weights, the same for a seed. Raises UserError for a preset that does not exist."""
    if preset not in PRESETS:
        raise UserError(f"no preset `{preset}` of a model that writes; use one of {', '.join(PRESETS)}.")
    model, encoder = PRESETS[preset]
    return model(seed, attention), encoder()


def load_vlm(
    where: str, max_tokens: int = 1024, attention: str = "sdpa", dtype: torch.dtype = torch.float32
) -> tuple[VlmModel, ChatEncoder]:
    """A pretrained model on the CPU, and the encoder of its own processor and chat template.

    where: a local folder or a hub id. max_tokens: the longest row; the paper's is 1,024.
    Raises UserError for what cannot be reached or read, another family, and weights that are missing or left over.
    """
    folder = local_folder(where, FILES)
    if not (folder / "config.json").is_file():
        raise UserError(f"{where}: no config.json in it; give a folder in the layout of transformers.")
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{where}: its config.json cannot be read ({_first_line(error)}).") from error
    check_family(config)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            str(folder),
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"{where}: its weights cannot be loaded ({_first_line(error)}); fetch them again.") from error
    network, report = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[what])):
            raise UserError(f"{where}: its weights have {what.replace('_', ' ')} ({names[0]}); fetch them again.")
    return VlmModel(network, max_tokens), ChatEncoder.load(folder, max_tokens)


def load_encoder(where: str, max_tokens: int = 1024) -> ChatEncoder:
    """The encoder alone, for data without a model. Raises UserError as `load_vlm`."""
    return ChatEncoder.load(local_folder(where, FILES), max_tokens)


def save_vlm(vlm: VlmModel, encoder: ChatEncoder, folder: str | Path, state: dict[str, Any] | None = None) -> None:
    """Writes a folder that `from_pretrained` takes: weights, configs, processor and chat template.

    state: weights by their names in `vlm.network`, where other ones than its own are written.
    """
    vlm.network.save_pretrained(str(folder), state_dict=state)
    encoder.save(folder)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
