"""The image and the text tower of a grounding model: SigLIP's, of transformers, read from a folder or small and random.

`google/siglip2-base-patch16-224` is of these classes too (transformers' Siglip2 is the variant of free image sizes).
Refuses other families, weights that do not fill the towers, and a processor or a tokenizer of another model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipTextModel, SiglipVisionConfig
from transformers import SiglipVisionModel as SiglipImages
from transformers.initialization import no_init_weights

from la4vla.grounding.sentences import SentenceEncoder, tiny_encoder
from la4vla.model.tokenizer import local_folder
from la4vla.rng import RngUse, torch_generator
from la4vla.types import UserError

PRESET = "tiny"
TINY_SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TINY_IMAGE: dict[str, Any] = {"image_size": 112, "patch_size": 16}
PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
"""What SigLIP's towers were trained with."""
PROCESSOR = "preprocessor_config.json"
FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.json", "*.model")
EMBEDDING_STD = 0.02


@dataclass(frozen=True)
class Towers:
    """What a grounding model stands on.

    text         gives [B, W] for sentences
    vision       gives [B, V] for images; None without vision
    pixels       `image_mean` and `image_std` of the images, in [0, 1]
    encoder      of sentences
    """

    text: SiglipTextModel
    vision: SiglipImages | None
    pixels: dict[str, list[float]]
    encoder: SentenceEncoder

    @property
    def image_size(self) -> int:
        """Pixels, square; 0 without vision."""
        config: Any = self.vision.config if self.vision is not None else None
        return config.image_size if config is not None else 0


def build_towers(preset: str, vision: bool, seed: int) -> Towers:
    """Small and random ones, the same for a seed. Raises UserError for an unknown preset."""
    if preset != PRESET:
        raise UserError(
            f"model.preset is {preset}, and learner grounding knows {PRESET} alone; set it, or model.weights to a "
            "SigLIP."
        )
    encoder = tiny_encoder()
    text = SiglipTextConfig(
        **TINY_SIZES,
        vocab_size=encoder.vocab,
        max_position_embeddings=encoder.length,
        pad_token_id=encoder.pad_token_id,
        eos_token_id=encoder.pad_token_id,
        bos_token_id=None,
    )
    made = empty_towers(text, SiglipVisionConfig(**TINY_SIZES, **TINY_IMAGE) if vision else None)
    for name, tower in (("text", made[0]), ("vision", made[1])):
        if tower is not None:
            set_fresh(tower, f"grounding.{name}", seed)
    return Towers(*made, PIXELS, encoder)


def empty_towers(
    text: SiglipTextConfig, vision: SiglipVisionConfig | None
) -> tuple[SiglipTextModel, SiglipImages | None]:
    """Allocated and unset, in fp32; no default initialisation draws random numbers."""
    with no_init_weights():
        return SiglipTextModel(text), SiglipImages(vision) if vision is not None else None


def load_towers(place: str, vision: bool) -> Towers:
    """Of a folder or hub id. Raises UserError for what is no SigLIP, and for files that do not belong together."""
    folder = local_folder(place, FILES)
    config = _siglip_config(folder)
    try:
        loaded: Any = SiglipModel.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: its weights cannot be read ({_first_line(error)}); fetch them again.") from error
    whole, found = loaded
    wrong = sorted([*found["missing_keys"], *found["unexpected_keys"], *map(str, found["mismatched_keys"])])
    if wrong:
        raise UserError(f"{folder}: its weights do not fit its config.json ({', '.join(wrong[:3])}); fetch them again.")
    encoder = SentenceEncoder.load(folder, config.text_config.max_position_embeddings)
    if encoder.vocab > config.text_config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {encoder.vocab} tokens and its weights {config.text_config.vocab_size}; the "
            "tokenizer is of another model, fetch the folder again."
        )
    pixels = _pixels(folder, config.vision_config.image_size) if vision else PIXELS
    return Towers(whole.text_model, whole.vision_model if vision else None, pixels, encoder)


@torch.no_grad()
def set_fresh(root: nn.Module, name: str, seed: int) -> None:
    """First weights of everything below `root`, drawn by parameter name: matrices Xavier uniform, tables and single
    vectors normal with std 0.02, norms 1, biases 0."""
    for path, module in root.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            draw = torch_generator(seed, RngUse.INIT, f"{name}.{path}.{key}")
            if isinstance(module, nn.LayerNorm):
                parameter.fill_(1.0 if key == "weight" else 0.0)
            elif "bias" in key:
                parameter.zero_()
            elif isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
                _xavier(parameter, draw)
            else:
                parameter.normal_(0.0, EMBEDDING_STD, generator=draw)


def _xavier(weight: Tensor, draw: torch.Generator) -> None:
    bound = (6.0 / (weight.shape[0] + weight[0].numel())) ** 0.5
    weight.uniform_(-bound, bound, generator=draw)


def _siglip_config(folder: Path) -> Any:
    """A SiglipConfig, whose parts transformers types as dicts."""
    try:
        raw = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no config.json that can be read; give the folder of a SigLIP.") from error
    if raw.get("model_type") != "siglip":
        raise UserError(
            f"{folder}: its model_type is `{raw.get('model_type')}`, and a grounding model stands on `siglip` "
            "(google/siglip2-base-patch16-224)."
        )
    return SiglipConfig.from_dict(raw)


def _pixels(folder: Path, image_size: int) -> dict[str, list[float]]:
    """Raises UserError where the processor is of images of another size."""
    try:
        raw: dict[str, Any] = json.loads((folder / PROCESSOR).read_text())
        size, pixels = raw["size"], {name: [float(value) for value in raw[name]] for name in PIXELS}
        side = size["height"] if isinstance(size, dict) else size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no {PROCESSOR} that can be read; fetch the folder again.") from error
    if side != image_size:
        raise UserError(
            f"{folder}: its processor makes images of {side} pixels and its weights take {image_size}; the processor "
            "is of another model, fetch the folder again."
        )
    return pixels


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
