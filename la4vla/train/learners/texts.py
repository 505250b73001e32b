"""What learners of conversations share: held-out ones, the codec of their actions, their first rows to look at."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from la4vla.config import TrainConfig, smallest_micro_batch
from la4vla.data.setup import Setup, TextSource
from la4vla.data.shards.index import Index, read_index
from la4vla.data.shards.read import read_texts
from la4vla.data.shards.texts import ROWS, TextRecord, read_about
from la4vla.train.dist import World, log0
from la4vla.train.engines.engine import Engine
from la4vla.train.metrics import Record
from la4vla.types import NOT_COUNTED, TextBatch, TextEncoder, UserError

REPEATED = re.compile(r"(<[^<>\s]+>)\1{3,}")  # tokens of an image
SHEET_SIDE = 224  # pixels of an image on the sheet of the first batch


class HeldOutTexts:
    """The first rows of a folder of conversations that no run trains on.

    rows          in the order of the folder
    rows_at_once  as many as fit where the run trains
    """

    def __init__(self, config: TrainConfig, setup: Setup, encoder: TextEncoder, world: World) -> None:
        """Raises UserError for a folder that holds no conversations, and for a row that does not
        fit the model."""
        asked, self.rows_at_once = config.validate, smallest_micro_batch(config)
        index = read_index(asked.texts, "texts")
        self.rows = [
            record.decoded(f"validate/{record.key}", index.location) for record in records(index, asked.text_rows)
        ]
        keys = {key for shard in index.shards for key in shard.keys}
        for name, source in setup.texts.items():
            if shared := keys & {key for shard in source.index.shards for key in shard.keys}:
                log0(
                    world,
                    f"warning: {len(shared)} of the {len(keys)} rows of validate.texts are also in source {name} (by "
                    "key), so they are not held out",
                )
        by_question: dict[str, list[Any]] = defaultdict(list)
        for row in self.rows:
            by_question[row.question].append(encoder.prepare(row))
        self._batches = {
            question: [
                encoder.batch(prepared[first : first + self.rows_at_once])
                for first in range(0, len(prepared), self.rows_at_once)
            ]
            for question, prepared in sorted(by_question.items())
        }
        self._device = world.device

    def losses(self, module: torch.nn.Module, engine: Engine) -> Record:
        """`val/text`, the mean cross-entropy of an answer token, and the same by question type. Collective; every rank
        computes all of it."""
        training = module.training
        module.eval()
        record: Record = {}
        sums = np.zeros(2)
        with torch.no_grad():
            for question, batches in self._batches.items():
                parts = [engine.forward(batch.to(self._device)) for batch in batches]
                of_question = np.array([[float(loss), float(count)] for loss, count in parts]).sum(0)
                record[f"val/text/{question}"] = float(of_question[0] / of_question[1])
                sums += of_question
        module.train(training)
        return {"val/text": float(sums[0] / sums[1]), **record}


def records(index: Index, most: int) -> list[TextRecord]:
    """The first `most` of a folder, shards in turn so that they are mixed as it was written."""
    found: list[TextRecord] = []
    for number in range(len(index.shards)):
        if len(found) >= most:
            break
        found += read_texts(index, number)
    return found[:most]


def codec_of(sources: Mapping[str, TextSource]) -> dict[str, Any]:
    """The codec of the action texts in these folders, as `construct texts` says in them; empty where there are no such
    texts. Raises UserError where two of them differ."""
    found: dict[str, Any] = {}
    for name, source in sources.items():
        codec = read_about(source.index.location).get("action_text")
        if found and codec and codec != found:
            raise UserError(f"data.sources.{name} writes actions otherwise than the sources before it; leave it out.")
        found = found or codec or {}
    return found


def questions_of(sources: Mapping[str, TextSource]) -> set[str]:
    """The types of questions in these folders, as their writers counted them; none of a folder without such a count."""
    return {name for source in sources.values() for name in read_about(source.index.location).get(ROWS, {})}


def first_images(setup: Setup, batches: Sequence[TextBatch], most: int) -> list[torch.Tensor]:
    """uint8 [3, S, S]: the stored images of a step's conversations, squared to SHEET_SIDE."""
    images: list[torch.Tensor] = []
    read: dict[tuple[str, int], dict[str, TextRecord]] = {}
    for key in (key for batch in batches for key in batch.keys):
        if len(images) >= most:
            break
        name, _, record = key.partition("/")
        index = setup.texts[name].index
        shard = next(number for number, shard in enumerate(index.shards) if record in shard.keys)
        if (name, shard) not in read:
            read[name, shard] = {row.key: row for row in read_texts(index, shard)}
        for image in read[name, shard][record].decoded(key, index.location).images:
            squared = cv2.resize(image, (SHEET_SIDE, SHEET_SIDE), interpolation=cv2.INTER_AREA)
            images.append(torch.from_numpy(squared).permute(2, 0, 1))
    return images[:most]


def as_told(batch: TextBatch, spell: Any) -> str:
    """A step's conversations for a person: what is given, and on a line of its own what is learned.

    spell: tokens -> text, special tokens too.
    """
    lines: list[str] = []
    for key, ids_L, labels_L, mask_L in zip(
        batch.keys, batch.input_ids_BL, batch.labels_BL, batch.text_mask_BL, strict=True
    ):
        ids, learned = ids_L[mask_L].tolist(), (labels_L[mask_L] != NOT_COUNTED).tolist()
        lines += [f"=== {key}: {len(ids)} tokens, {sum(learned)} learned"]
        first = 0
        for place in range(1, len(ids) + 1):
            if place == len(ids) or learned[place] != learned[first]:
                told = REPEATED.sub(_counted, spell(ids[first:place]))
                lines.append(f"{'LEARNED' if learned[first] else 'given  '} | {told}")
                first = place
    return "\n".join(lines) + "\n"


def _counted(repeated: re.Match[str]) -> str:
    return f"{len(repeated[0]) // len(repeated[1])} x {repeated[1]}"
