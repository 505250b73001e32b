"""Makes the tokenizer of the `tiny` preset, assets/tokenizer.json, from robot sentences.

    python -m la4vla.model.train_tokenizer [FOLDER]

A byte-level BPE of at most 1,024 entries, lower-cased so that the first word of a sentence is the same token as inside
one. Its text is assets/sentences.txt (task sentences of MetaWorld, LIBERO and the paper's robot), assets/objects.txt,
and the atomic instructions put together here. Nothing is random: a test compares what comes out with the committed
file.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from la4vla.model.presets import TINY
from la4vla.model.tokenizer import IMAGE_CLOSE, IMAGE_CONTEXT, IMAGE_OPEN, PAD, TINY_TOKENIZER

DIRECTIONS = ("up", "down", "left", "right", "forward", "backward", "upward", "downward", "sideways", "away", "back")
GRIPPER = (
    "close the gripper on the object",
    "open the gripper and release the object",
    "grasp the object with the gripper",
)
FREE_MOVES = ("move", "move the gripper", "move the empty gripper", "move the arm", "move the end effector")
HELD_MOVES = (
    "lift",
    "lower",
    "transport",
    "carry",
    "place",
    "push",
    "pull",
    "press",
    "slide",
    "sweep",
    "raise",
    "hold",
)
TURNS = ("rotate", "turn", "wrist rotate", "reorient")
MANNERS = (
    "",
    " slowly",
    " while holding it",
    " with an empty gripper",
    " while keeping the gripper closed",
    " slightly",
)


def sentences() -> list[str]:
    """Atomic instructions, task sentences and the words around images, in a fixed order."""
    tasks, objects = _lines("sentences.txt"), _lines("objects.txt")
    atomic = [f"{verb} {where}{manner}" for verb, where, manner in product(FREE_MOVES, DIRECTIONS, MANNERS)]
    held = [f"{verb} the object {where}{manner}" for verb, where, manner in product(HELD_MOVES, DIRECTIONS, MANNERS)]
    turns = [
        f"{verb} the object {where}" for verb, where in product(TURNS, ("clockwise", "counter-clockwise", "upright"))
    ]
    handled = [
        f"{verb} the {name}"
        for verb, name in product(("pick up", "put down", "push", "reach", "open", "close"), objects)
    ]
    pairs = [f"{one} and then {other}" for one, other in product(DIRECTIONS, DIRECTIONS)]
    images = [f"Image-{slot}: " for slot in range(1, 9)] * 20
    return [*atomic, *held, *turns, *handled, *pairs, *GRIPPER * 40, *tasks * 10, *images]


def _lines(name: str) -> list[str]:
    return (TINY_TOKENIZER / name).read_text().splitlines()


def build() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY.vocab,
        special_tokens=[PAD, IMAGE_OPEN, IMAGE_CLOSE, IMAGE_CONTEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    return tokenizer


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TINY_TOKENIZER
    build().save(str(target / "tokenizer.json"))
