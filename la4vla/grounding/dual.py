"""CLIP and SigLIP as scorers: the cosine of the scene and the sentence. What is done plays no part (GPLA's baselines).

Transformers' own classes, read from a local folder. Refuses other families, weights that do not fill the model, and a
processor or a tokenizer of another model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from la4vla.data.transforms import clean_sentence
from la4vla.grounding.batched import each_once
from la4vla.types import Deed, UserError

FAMILIES = {"clip": "CLIP", "siglip": "SigLIP, also google/siglip2-base-patch16-224"}
"""Name of the scorer, which is the model_type of config.json -> what it is."""
PROBE = np.zeros((8, 8, 3), np.uint8)  # an image of which the processor's size is seen


class DualEncoderScorer:
    """name: `clip` or `siglip`."""

    def __init__(self, folder: Path, family: str, device: str) -> None:
        self.name, self._device = family, device
        self._model, self._tokenizer, self._processor = _loaded(folder, family)
        self._model.to(device).eval()
        self._length = self._model.config.text_config.max_position_embeddings
        self._folder = folder
        self._check_processor()

    def scores(self, deeds: Sequence[Deed]) -> np.ndarray:
        """float32 [deeds], cosines in [-1, 1]."""
        if not deeds:
            return np.zeros(0, np.float32)
        found = self.embeddings(deeds)
        return (found["images"] * found["sentences"]).sum(axis=1)

    def embeddings(self, deeds: Sequence[Deed]) -> Mapping[str, np.ndarray]:
        """`sentences` and `images` -> float32 [deeds, D] of length 1."""
        return {
            "sentences": each_once(deeds, lambda deed: clean_sentence(deed.sentence), self._embed_sentences),
            "images": each_once(deeds, lambda deed: id(deed.image), self._embed_images),
        }

    def _tokens(self, deed: Deed) -> list[int]:
        ids = self._tokenizer(clean_sentence(deed.sentence))["input_ids"]
        if len(ids) > self._length:
            raise UserError(
                f"{deed.key}: its sentence has {len(ids)} tokens, and {self.name} takes {self._length}; shorten it."
            )
        return ids

    def _embed_sentences(self, deeds: list[Deed]) -> Tensor:
        """Padded to the longest row that the model takes: SigLIP was trained so, and pays no heed to a mask."""
        rows = [self._tokens(deed) for deed in deeds]
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (self._length - len(row))] for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (self._length - len(row)) for row in rows], device=self._device)
        given = {"attention_mask": mask} if self.name == "clip" else {}
        return functional.normalize(self._model.get_text_features(input_ids=ids, **given).pooler_output, dim=-1)

    def _embed_images(self, deeds: list[Deed]) -> Tensor:
        pixels = self._pixels([deed.image for deed in deeds]).to(self._device)
        return functional.normalize(self._model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    def _pixels(self, images: list[np.ndarray]) -> Tensor:
        return self._processor(images=images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    def _check_processor(self) -> None:
        """Raises UserError where processor or tokenizer is not that of the weights."""
        takes, makes = self._model.config.vision_config.image_size, self._pixels([PROBE]).shape[-1]
        if makes != takes:
            raise UserError(
                f"{self._folder}: its processor makes images of {makes} pixels and its weights take {takes}; the "
                "processor is of another model, fetch the folder again."
            )
        tokens, rows = len(self._tokenizer), self._model.config.text_config.vocab_size
        if tokens > rows:
            raise UserError(
                f"{self._folder}: its tokenizer has {tokens} tokens and its weights {rows}; the tokenizer is of "
                "another model, fetch the folder again."
            )


def _loaded(folder: Path, family: str) -> tuple[Any, PreTrainedTokenizerFast, Any]:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json in it; give the local folder of a {FAMILIES[family]}.")
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        model, found = AutoModel.from_pretrained(
            str(folder), config=config, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder}: cannot be read ({reason}); fetch the folder again.") from error
    if config.model_type != family:
        raise UserError(f"{folder}: its model_type is `{config.model_type}`, and {family} takes {FAMILIES[family]}.")
    wrong = sorted([*found["missing_keys"], *found["unexpected_keys"], *map(str, found["mismatched_keys"])])
    if wrong:
        raise UserError(f"{folder}: its weights do not fit its config.json ({', '.join(wrong[:3])}); fetch them again.")
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.pad_token_id is None:
        raise UserError(f"{folder}: its tokenizer is no fast one with a pad token; fetch the folder again.")
    return model, tokenizer, processor
