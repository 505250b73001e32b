"""Who writes: `Writer`, and the model of this process as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from la4vla.config import SamplingConfig
from la4vla.manifest import Manifest
from la4vla.serve.policy import whole_weights
from la4vla.types import Turn, UserError
from la4vla.vlm.generate import Writing, write
from la4vla.vlm.model import VlmModel
from la4vla.vlm.rows import ChatEncoder, EncodedText


@dataclass(frozen=True)
class Prompt:
    """What a writer answers to.

    key     names the random numbers: the same key, prompt and sampling give the same text, alone or in a batch
    turns   end with the user's
    images  uint8 RGB [H, W, 3] each; turns name them by number
    """

    key: str
    turns: tuple[Turn, ...]
    images: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class WriterAnswer:
    """What came of a prompt.

    text     as it was written, any string at all
    refused  why the prompt was not answered, as one sentence; empty if it was
    """

    text: str
    refused: str = ""


class Writer(Protocol):
    """Anything that answers prompts with texts."""

    def write(self, prompts: Sequence[Prompt], sampling: SamplingConfig, top_p: float) -> list[WriterAnswer]:
        """One answer for each prompt. A prompt that cannot be answered, such as one that is too long because of what
        was written before, is refused by itself."""
        ...


@dataclass(frozen=True)
class VlmWriter:
    """A model in this process.

    rows_at_once  a memory knob that changes no random number
    """

    vlm: VlmModel
    encoder: ChatEncoder
    rows_at_once: int = 16

    @staticmethod
    def load(
        folder: Path, description: Manifest, device: str | torch.device, base: str, weights: str = "raw"
    ) -> VlmWriter:
        """The model of a checkpoint. base: where the weights lie that its adapters belong to, if not where they lay.
        weights: one of manifest.WHICH_WEIGHTS. Raises UserError for damaged or other weights."""
        # Imported only when asked for: it brings the classes of every family.
        from la4vla.vlm.stored import load_checkpoint

        whole_weights(folder, description)
        vlm, encoder = load_checkpoint(folder, description, base, weights)
        return VlmWriter(vlm.to(device), encoder)

    def write(self, prompts: Sequence[Prompt], sampling: SamplingConfig, top_p: float) -> list[WriterAnswer]:
        answers = [WriterAnswer("")] * len(prompts)
        places: list[int] = []
        prepared: list[EncodedText] = []
        for place, prompt in enumerate(prompts):
            try:
                prepared.append(self.encoder.prompt(prompt.key, prompt.turns, prompt.images))
                places.append(place)
            except UserError as error:
                answers[place] = WriterAnswer("", str(error))
        if prepared:
            how = Writing(sampling.max_tokens, sampling.temperature, top_p)
            written = write(self.vlm, self.encoder, prepared, how, rows_at_once=self.rows_at_once)
            for place, answer in zip(places, written, strict=True):
                answers[place] = WriterAnswer(answer.text)
        return answers
