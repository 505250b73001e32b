"""The same instruction in other words, by rule. No model is asked, and the words do not tell the policy that it is
tested.

Severity 1 frames the sentence politely, 2 swaps a verb, 3 verb and noun, 4 swaps more and adds a sentence of context, 5
adds frame, context and typing errors. An instruction that no rule for verbs or nouns fits gets the polite frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

FRAMES = ("please {}", "could you {}", "I would like you to {}", "your job is to {}", "go ahead and {}")
CONTEXTS = (
    "We are preparing for guests. {}",
    "Take your time. {}",
    "{}. Do not touch anything else.",
    "{}. Thank you.",
)
VERBS = {
    "pick up": ("grab", "take", "lift"),
    "pick": ("grab", "take"),
    "put": ("place", "set"),
    "place": ("put", "position"),
    "push": ("shove", "nudge"),
    "pull": ("drag", "tug"),
    "open": ("pull open", "undo"),
    "close": ("shut",),
    "turn on": ("switch on",),
    "press": ("push down",),
    "rotate": ("turn",),
    "reach": ("move to", "go to"),
    "insert": ("slot", "stick"),
    "sweep": ("brush",),
    "slide": ("shift",),
    "unplug": ("pull out",),
}
NOUNS = {
    "bowl": ("dish",),
    "plate": ("flat dish",),
    "basket": ("hamper",),
    "cabinet": ("cupboard",),
    "stove": ("cooker",),
    "mug": ("cup",),
    "puck": ("small cylinder", "disc"),
    "peg": ("rod",),
    "faucet": ("tap",),
    "goal": ("target",),
    "hole": ("opening",),
    "table": ("tabletop",),
}
TYPO_SHARE = 0.3  # of words of five letters and more


def paraphrase(text: str, severity: int, draws: np.random.Generator) -> str:
    """The instruction in other words for a severity of 1 to 5; always differs from `text`."""
    plain = text.strip().rstrip(".")
    plain = plain[:1].lower() + plain[1:]
    swaps = {1: 0, 2: 1, 3: 1, 4: 2, 5: 2}[severity]
    reworded = _swap(plain, VERBS, swaps, draws)
    if severity >= 3:
        reworded = _swap(reworded, NOUNS, swaps, draws)
    if severity in (1, 5) or reworded == plain:
        reworded = str(draws.choice(FRAMES)).format(reworded)
    if severity >= 4:
        reworded = str(draws.choice(CONTEXTS)).format(reworded)
    return _mistype(reworded, draws) if severity == 5 else reworded


def _swap(text: str, table: Mapping[str, Sequence[str]], count: int, draws: np.random.Generator) -> str:
    """The text with its first `count` words that the table knows replaced, each by one of the table's choices."""
    words = sorted(table, key=len, reverse=True)
    pattern = re.compile(r"\b(" + "|".join(words) + r")\b")
    return pattern.sub(lambda match: str(draws.choice(table[match[1]])), text, count=count) if count else text


def _mistype(text: str, draws: np.random.Generator) -> str:
    """The text with two neighbouring inner letters swapped in some of its long words; in one at least."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) > 4]
    chosen = [index for index in long if draws.random() < TYPO_SHARE] or long[:1]
    for index in chosen:
        word, at = words[index], int(draws.integers(1, len(words[index]) - 2))
        words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
