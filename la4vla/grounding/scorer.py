"""A grounding checkpoint as a scorer: the cosine of a motion and a sentence, in eval mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from la4vla import manifest
from la4vla.data.pairs import collate_pairs
from la4vla.data.transforms import Chain, chain_from_dicts
from la4vla.grounding.batched import each_once
from la4vla.grounding.model import GroundingModel, rebuild
from la4vla.grounding.sentences import SentenceEncoder
from la4vla.model.base import load_stored
from la4vla.types import Deed, Embodiment, Sample, UserError

GROUNDING, ACTION_ONLY = "grounding", "action_only"


class GroundingScorer:
    """name        `grounding`, or `action_only` for a model that is not shown the scene
    embodiment  of the motions that it judges
    horizon     actions of a motion at most
    identity    sha256 of its weights
    """

    def __init__(
        self,
        model: GroundingModel,
        chain: Chain,
        encoder: SentenceEncoder,
        embodiment: Embodiment,
        identity: str,
        device: str,
    ) -> None:
        self._model = model.to(device).eval()
        self._chain, self._encoder, self._device = chain, encoder, device
        self.embodiment, self.identity = embodiment, identity
        self.horizon = model.head.sizes.horizon

    @staticmethod
    def load(folder: Path, device: str) -> GroundingScorer:
        """folder: a complete checkpoint. Raises UserError for one of another learner."""
        made = manifest.read(folder)
        if made.learner != "grounding":
            raise UserError(f"{folder} is of learner {made.learner}, which scores nothing; give a grounding model.")
        encoder = SentenceEncoder.load(folder / manifest.TOKENIZER, made.input_spec["max_tokens"])
        model = rebuild(made.model, encoder)
        load_stored(model, load_file(folder / manifest.WEIGHTS), folder)
        trained = made.robot()
        robot, chain = Embodiment.from_dict(trained.embodiment), chain_from_dicts(trained.transforms)
        return GroundingScorer(model, chain, encoder, robot, made.weights_sha256, device)

    @property
    def name(self) -> str:
        return GROUNDING if self._model.vision is not None else ACTION_ONLY

    def scores(self, deeds: Sequence[Deed]) -> np.ndarray:
        """float32 [deeds], cosines in [-1, 1]."""
        if not deeds:
            return np.zeros(0, np.float32)
        found = self.embeddings(deeds)
        return (found[self._motions] * found["sentences"]).sum(axis=1)

    def embeddings(self, deeds: Sequence[Deed]) -> Mapping[str, np.ndarray]:
        """`sentences`, and `images and actions` (or `actions`) -> float32 [deeds, D] of length 1."""
        # Deeds of one motion with other sentences share their arrays.
        motions = each_once(deeds, lambda deed: (id(deed.image), id(deed.actions)), self._embed_motions)
        return {
            "sentences": each_once(deeds, lambda deed: deed.sentence, self._embed_sentences),
            self._motions: motions,
        }

    @property
    def _motions(self) -> str:
        return "images and actions" if self._model.vision is not None else "actions"

    def _sample(self, deed: Deed) -> Sample:
        """The deed as a training sample, through the run's own chain. The state plays no part."""
        steps, width = len(deed.actions), len(self.embodiment.action.names)
        if not (1 <= steps <= self.horizon and deed.actions.shape == (steps, width)):
            raise UserError(
                f"{deed.key}: its actions are {deed.actions.shape}; this scorer takes 1 to {self.horizon} actions of "
                f"{width} numbers ({' '.join(self.embodiment.action.names)})."
            )
        if not np.isfinite(deed.actions).all():
            raise UserError(f"{deed.key}: an action is not finite; leave the deed out.")
        states = np.zeros((self.horizon, len(self.embodiment.state.names)), np.float32)
        action = np.zeros((self.horizon, width), np.float32)
        action[:steps] = deed.actions
        views = self._chain.views
        return self._chain(
            Sample(
                kind="vla" if views else "la",
                key=deed.key,
                instruction=deed.sentence,
                state=states[0],
                action=action,
                action_valid=np.arange(self.horizon) < steps,
                state_mask=np.ones(states.shape[1], bool),
                action_mask=np.ones(width, bool),
                views={view: deed.image for view in views},
                action_states=states,
            )
        )

    def _embed_sentences(self, deeds: list[Deed]) -> Tensor:
        ids = [self._encoder.encode(self._sample(deed).instruction) for deed in deeds]
        return self._model.sentence(torch.tensor(ids, device=self._device))

    def _embed_motions(self, deeds: list[Deed]) -> Tensor:
        samples = [self._sample(deed) for deed in deeds]
        batch = collate_pairs(samples, lambda *_: [0], "deeds", 0).to(self._device)
        return self._model.motion(batch.images_BCHW, batch.actions_BTA, batch.action_valid_BT)
