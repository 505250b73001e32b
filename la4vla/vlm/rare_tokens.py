"""A model's rarest tokens under names of one's own, for codecs that write numbers with tokens of no other use.

Names that the tokenizer has already (`<unused6133>` of Gemma 3) stay what they are. The others are given to tokens
that the model has hardly met: those kept free by the tokenizer's makers (`unused`, `reserved`), and then the merges
that were learned last, which are the rarest of a byte-pair vocabulary. Ids and sizes stay, so weights do; the merge
that made such a token is gone, and its text is spelled in two. Everything is written into `tokenizer.json`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from la4vla.types import UserError
from la4vla.vlm.rows import ChatEncoder

FREE = ("unused", "reserved")
TOKENIZER_FILE = "tokenizer.json"


def with_tokens(encoder: ChatEncoder, names: Sequence[str]) -> ChatEncoder:
    """An encoder to which each of `names` is one token; `encoder` itself where each is one already.

    The last free tokens are taken, in the order of their ids. Raises UserError where too few are rare, and for names
    that the tokenizer cannot hold.
    """
    missing = [name for name in names if not is_one_token(encoder, name)]
    if not missing:
        return encoder
    files = encoder.files()
    raw = json.loads(files[TOKENIZER_FILE])
    for number, name in zip(_rare(raw, names, len(missing)), missing, strict=True):
        _rename(raw, number, name)
    files[TOKENIZER_FILE] = json.dumps(raw, ensure_ascii=False).encode()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        renamed = ChatEncoder.load(folder, encoder.max_tokens)
    if wrong := [name for name in names if not is_one_token(renamed, name)]:
        raise UserError(f"the tokenizer cannot hold `{wrong[0]}` as one token; give it another name.")
    return renamed


def is_one_token(encoder: ChatEncoder, text: str) -> bool:
    """Also between others, and back again."""
    before, between, after = (encoder.tokenizer.encode(part, add_special_tokens=False) for part in ("a", text, "1"))
    ids = encoder.tokenizer.encode(f"a{text}1", add_special_tokens=False)
    return len(between) == 1 and ids == [*before, *between, *after] and encoder.decode(ids) == f"a{text}1"


def _rare(raw: dict[str, Any], names: Sequence[str], count: int) -> list[int]:
    """Ids, in order. raw: tokenizer.json."""
    free = [
        token["id"]
        for token in raw["added_tokens"]
        if not token["special"] and any(word in token["content"] for word in FREE) and token["content"] not in names
    ]
    vocab: dict[str, int] = raw["model"]["vocab"]
    taken = {token["id"] for token in raw["added_tokens"]}
    merged = sorted({vocab["".join(_pair(merge))] for merge in raw["model"].get("merges", [])} - taken)
    least = [*merged, *sorted(free)][-count:]
    if len(least) < count:
        raise UserError(f"the tokenizer has {len(least)} tokens to spare, {count} are needed; use another codec.")
    return sorted(least)


def _rename(raw: dict[str, Any], number: int, name: str) -> None:
    """Gives token `number` the name, wherever tokenizer.json has it."""
    vocab: dict[str, int] = raw["model"]["vocab"]
    old = next((token for token, known in vocab.items() if known == number), None)
    if old is not None:
        del vocab[old]
        vocab[name] = number
        raw["model"]["merges"] = [
            merge for merge in raw["model"]["merges"] if old not in (*_pair(merge), "".join(_pair(merge)))
        ]
    added = next((token for token in raw["added_tokens"] if token["id"] == number), None)
    if added is None:
        added = {"id": number, "single_word": False, "lstrip": False, "rstrip": False}
        raw["added_tokens"] = sorted([*raw["added_tokens"], added], key=lambda token: token["id"])
    added.update(content=name, normalized=False, special=False)


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """Older files write a merge as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
