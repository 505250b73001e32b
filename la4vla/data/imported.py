"""`la4vla data import-conversations`: LLaVA's and ShareGPT's JSONL as a text source, whatever it asks about.

A line is an object with `conversations` of {from, value} (human, gpt, system) or `messages` of {role, content} (user,
assistant, system), and `image` or `images`: paths below a folder. `<image>` in a text stands for the next image, which
is shown before that text. Every answer of a row is learned. The folder appears when all rows are in it, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from tqdm import tqdm

from la4vla.data.shards.index import Index
from la4vla.data.shards.texts import StoredImage, TextRecord, TextWriter, fault
from la4vla.types import Role, Turn, UserError

MARKER = "<image>"
ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant"), "assistant"),
    "system": "system",
}
VIEW = "image"  # name of the view of all imported images; they are numbered by row
QUALITY = 95  # of images that were no JPEG


def import_conversations(
    file: Path, images: Path, out: Path, shards: int, question: str, overwrite: bool = False
) -> Index:
    """Writes the rows of `file` (JSONL, or one JSON list) to the shard folder `out`, and returns its index.

    images: folder that image paths start from. question: name of their type of question; empty: the file's name.
    Raises UserError for the first row that cannot be taken, with its line; then nothing is written.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; name a JSONL file of conversations.")
    about = {"imported": file.name, "images": str(images)}
    with TextWriter(out, shards, overwrite=overwrite, about=about) as writer:
        for number, where, raw in tqdm(_objects(file), desc="importing", unit="row", disable=None):
            record = _record(where, number, raw, images, question or file.stem)
            if wrong := fault(record):
                raise UserError(f"{where}: {wrong}; mend the row or take it out.")
            writer.add(record)
        return writer.close()


def _objects(file: Path) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """(number, place in words, object) of each row, from 0."""
    with file.open(encoding="utf-8") as lines:
        head = lines.read(1)
        lines.seek(0)
        if head == "[":
            yield from ((number, f"{file}, row {number + 1}", raw) for number, raw in enumerate(_list(file)))
            return
        number = 0
        for at, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}, line {at}"
            try:
                raw = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where}: not JSON ({error}); mend the line or take it out.") from error
            if not isinstance(raw, dict):
                raise UserError(f"{where}: a row is an object with `conversations` or `messages`; mend it.")
            yield number, where, raw
            number += 1


def _list(file: Path) -> list[Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); mend the file.") from error


def _record(where: str, number: int, raw: Mapping[str, Any], images: Path, question: str) -> TextRecord:
    names = _image_names(where, raw)
    turns: list[Turn] = []
    if isinstance(system := raw.get("system"), str) and system.strip():
        turns.append(Turn("system", system))
    shown = 0
    for role, text in _spoken(where, raw):
        count = text.count(MARKER)
        turns.append(Turn(role, _without_markers(text), tuple(range(shown, shown + count))))
        shown += count
    if shown != len(names):
        raise UserError(
            f"{where}: {shown} {MARKER} markers and {len(names)} images; give every image one marker, and every marker "
            "an image."
        )
    stored = tuple(StoredImage(VIEW, place, _jpeg(where, images, name)) for place, name in enumerate(names))
    return TextRecord(f"row-{number:08d}", tuple(turns), stored, question)


def _image_names(where: str, raw: Mapping[str, Any]) -> Sequence[str]:
    given = raw.get("images", raw.get("image")) or []
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: `image` is a path and `images` a list of paths; mend the row.")
    return names


def _spoken(where: str, raw: Mapping[str, Any]) -> Iterator[tuple[Role, str]]:
    turns = raw.get("conversations", raw.get("messages"))
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: it has neither `conversations` nor `messages`; mend the row or take it out.")
    for turn in turns:
        role, text = (turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) if turn else ("", "")
        if role not in ROLES:
            raise UserError(f"{where}: role `{role}` is not one of {', '.join(ROLES)}; mend the row or take it out.")
        if not isinstance(text, str):
            raise UserError(f"{where}: what `{role}` says is no text; mend the row or take it out.")
        yield ROLES[role], text


def _without_markers(text: str) -> str:
    """The text as it is said behind its images: a marker takes the line break beside it along."""
    lines = [line.replace(MARKER, "").strip() if MARKER in line else line for line in text.split("\n")]
    kept = [line for line, before in zip(lines, text.split("\n"), strict=True) if line or MARKER not in before]
    return "\n".join(kept).strip()


def _jpeg(where: str, images: Path, name: str) -> bytes:
    """A JPEG, upright: the file itself, or what it shows where it is another kind, or turned by its EXIF."""
    path = images / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{where}: image {path} cannot be read ({error.strerror}); check --images, or take the row out."
        ) from error
    turned = b"Exif" in data[:4096]
    if data[:2] == b"\xff\xd8" and not turned and _decodes(data):
        return data
    image_HW3 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image_HW3 is None:
        raise UserError(f"{where}: image {path} is no image that can be decoded; mend it, or take the row out.")
    rgb_HW3 = np.ascontiguousarray(image_HW3[..., ::-1])
    return simplejpeg.encode_jpeg(rgb_HW3, quality=QUALITY, colorspace="RGB")


def _decodes(data: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError:
        return False
    return True
