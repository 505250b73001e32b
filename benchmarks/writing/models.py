"""A model that is asked questions in words: a model that writes, or a policy with a language head.

Opened from a folder in transformers' layout, a hub id, a checkpoint or a run. Both score answers; only a model that
writes also writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from la4vla import manifest
from la4vla.data.shards.index import read_index
from la4vla.data.shards.read import read_texts
from la4vla.data.transforms import ResizeImages
from la4vla.device import usable_device
from la4vla.model.conversation import ConversationEncoder
from la4vla.model.policy import Policy
from la4vla.model.tokenizer import Prompter
from la4vla.serve.policy import ServedPolicy
from la4vla.types import TextEncoder, TextRow, Turn, UserError
from la4vla.vlm.load import PRESETS, build_vlm, load_vlm
from la4vla.vlm.model import VlmModel
from la4vla.vlm.rows import ChatEncoder
from la4vla.vlm.stored import load_checkpoint

ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class AskedModel:
    """Open one with `open_model`.

    place     as it was given
    identity  sha256 of the weights, or the place where no checkpoint says it
    step      optimizer steps; 0 for a base
    module    in eval mode
    encoder   its own
    """

    place: str
    identity: str
    step: int
    module: VlmModel | Policy
    encoder: TextEncoder

    @torch.no_grad()
    def totals(self, rows: Sequence[TextRow]) -> list[float]:
        """Of each row, the log-probability of all its answer tokens, the end of the turn among them."""
        device = next(self.module.parameters()).device
        found: list[float] = []
        for first in range(0, len(rows), ROWS_AT_ONCE):
            batch = self.encoder.batch([self.encoder.prepare(row) for row in rows[first : first + ROWS_AT_ONCE]])
            line_M = (batch.answer_index // batch.input_ids_BL.shape[1]).to(device)
            sums_B = torch.zeros(batch.rows, device=device)
            found += sums_B.index_add(0, line_M, self.module.log_probs(batch.to(device))).tolist()
        return found


def open_model(place: str, device: str = "", base: str = "", before: AskedModel | None = None) -> AskedModel:
    """base: where the weights lie that a checkpoint's adapters belong to, if not where they lay when it was trained.
    before: the model that a policy without a language head began as; it is asked through that one's head.

    Raises UserError for a place that cannot be read and for a policy that no language head is there for.
    """
    where = usable_device(device)
    folder = Path(place)
    if not ((folder / manifest.MANIFEST).is_file() or (folder / manifest.CHECKPOINTS).is_dir()):
        vlm, encoder = build_vlm(place, 0) if place in PRESETS else load_vlm(place)
        return AskedModel(place, place, 0, vlm.eval().to(where), encoder)
    folder = manifest.resolve(folder)
    about = manifest.read(folder)
    if about.learner == "vlm":
        vlm, encoder = load_checkpoint(folder, about, base)
        return AskedModel(place, about.weights_sha256, about.step, vlm.eval().to(where), encoder)
    policy = ServedPolicy.load(folder, where, base).policy
    if not policy.writes:
        _borrow_head(place, policy, before)
    size = policy.size
    prompter = Prompter.load(folder / manifest.TOKENIZER, size.spec)
    asked = ConversationEncoder(prompter, size.vocab, ResizeImages(size.image_size).resized)
    return AskedModel(place, about.weights_sha256, about.step, policy, asked)


def _borrow_head(place: str, policy: Policy, before: AskedModel | None) -> None:
    """Gives a policy the language head of the model that it began as."""
    head = before.module.groups()["head"] if before is not None and isinstance(before.module, VlmModel) else ()
    shape = (policy.size.vocab, policy.size.width)
    if len(head) != 1 or not isinstance(head[0], torch.nn.Linear) or tuple(head[0].weight.shape) != shape:
        raise UserError(
            f"{place}: a policy without a language head answers no question; train it with a text source, or name the "
            "model that it began as before it."
        )
    policy.language_head, policy.writes = head[0], True


def writer(model: AskedModel) -> tuple[VlmModel, ChatEncoder]:
    """The model and its encoder. Raises UserError for a policy, which has a language head and no loop that writes."""
    if not (isinstance(model.module, VlmModel) and isinstance(model.encoder, ChatEncoder)):
        raise UserError(f"{model.place} is a policy with a language head; give a model that writes.")
    return model.module, model.encoder


def answered(row: TextRow, answer: str) -> TextRow:
    """The same row with another last answer."""
    return replace(row, turns=(*row.turns[:-1], Turn("assistant", answer)))


def read_rows(folder: str | Path, questions: Sequence[str], most: int = 0) -> list[TextRow]:
    """Conversations of a folder of kind text, images decoded.

    questions: beginnings of the types that are wanted. most: the first so many, evenly over the shards; 0: all.
    Raises UserError for a folder of something else and for one without such a question.
    """
    index = read_index(folder, "texts")
    wanted = tuple(questions)
    by_shard = [
        [record for record in read_texts(index, number) if record.question.startswith(wanted)]
        for number in range(len(index.shards))
    ]
    longest = max(map(len, by_shard), default=0)
    records = [shard[place] for place in range(longest) for shard in by_shard if place < len(shard)]
    if not records:
        raise UserError(f"{folder}: no question of type {' or '.join(wanted)}; name others, or construct some.")
    return [record.decoded(record.key, str(folder)) for record in records[: most or None]]
