"""From a stored conversation to the rows of a `TextBatch`. What its tokens are, the model's TextEncoder knows.

A row with an image that cannot be decoded keeps its place: grey stands in for the image and none of its tokens counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import simplejpeg

from la4vla.data.setup import TextSource
from la4vla.data.shards.texts import TextRecord
from la4vla.types import NOT_COUNTED, TextBatch, TextEncoder, TextRow, answer_places

UNKNOWN_SIZE = (64, 64)  # pixels of the grey image where the folder's images differ in size


@dataclass(frozen=True)
class PreparedText:
    """A conversation as tokens.

    row    what the encoder made of it
    error  why one of its images cannot be used, or empty; such a row is masked
    """

    key: str
    row: Any
    error: str = ""


def prepare_text(record: TextRecord, source: TextSource, shard: str, encoder: TextEncoder) -> PreparedText:
    """shard: name of its tar. Raises UserError as the encoder does."""
    row, error = _text_row(record, source)
    return PreparedText(row.key, encoder.prepare(row), f"shard {shard}, {error}" if error else "")


def batch_texts(texts: Sequence[PreparedText], encoder: TextEncoder) -> TextBatch:
    """One micro-batch, in which no token of a masked row counts."""
    batch = encoder.batch([item.row for item in texts])
    bad = [number for number, item in enumerate(texts) if item.error]
    if not bad:
        return batch
    labels_BL = batch.labels_BL.clone()
    labels_BL[bad] = NOT_COUNTED
    return replace(batch, labels_BL=labels_BL, answer_index=answer_places(labels_BL))


def _text_row(record: TextRecord, source: TextSource) -> tuple[TextRow, str]:
    """A conversation with its images decoded, and what is wrong with one of them, in words; empty: nothing. Grey stands
    in for a bad image."""
    images, wrong = [], ""
    for number, image in enumerate(record.images):
        try:
            images.append(simplejpeg.decode_jpeg(image.jpeg, colorspace="RGB"))
        except ValueError as error:
            view = source.index.views[image.view]
            size = (view.height, view.width) if view.height else UNKNOWN_SIZE
            images.append(np.full((*size, 3), 128, np.uint8))
            wrong = wrong or f"image {number} (view {image.view}, {image.t}): {error}"
    return record.row(f"{source.name}/{record.key}", images), wrong
