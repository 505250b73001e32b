"""Makes the tokenizer of the `tiny_vlm` preset, assets/tokenizer.json, out of the tiny policy's.

    python -m la4vla.vlm.train_tokenizer [FOLDER]

Every token of the tiny policy keeps its id, so weights can go from one to the other. Added are merges learned from
assets/texts.txt and from action texts, up to the same 1,024 entries; tokens that no text spells by chance, for codecs
that write numbers with rare ones; and the tokens of the chat template, an end of turn among them. A digit is a token by
itself; punctuation in front of a number is one token with its space (`], [-`). Nothing is random: a test compares what
comes out with the committed file.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers

from la4vla.model.presets import TINY
from la4vla.model.tokenizer import FILE, TINY_TOKENIZER

ASSETS = Path(__file__).parent / "assets"
TURN_START, TURN_END, VIDEO = "<|im_start|>", "<|im_end|>", "<video>"
UNUSED = tuple(f"<unused{number}>" for number in range(64))
PIECES = (  # the first that matches
    r" ?[^\s\p{L}\p{N}]+ ?[\[(+-]*(?=\p{N})"  # punctuation in front of a number
    r"|\p{N}"
    r"| ?\p{L}+"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+"
)


def texts() -> list[str]:
    """In a fixed order, what the merges are learned from."""
    signs = [
        f"[[{a}0.012, {b}0.034, {c}0.005, 1], [{a}0.050, {b}0.000, {c}0.021, 0]]"
        for a, b, c in product(("", "-"), repeat=3)
    ]
    return [*(ASSETS / "texts.txt").read_text().splitlines(), *signs]


def build() -> Tokenizer:
    raw = json.loads((TINY_TOKENIZER / FILE).read_text())
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tiny = Tokenizer.from_str(json.dumps(raw))
    vocab, merges = raw["model"]["vocab"], raw["model"]["merges"]
    special = (TURN_START, TURN_END, VIDEO)
    for pair in learned(tiny, pieces, TINY.vocab - len(vocab) - len(UNUSED) - len(special), set(vocab)):
        merges.append(list(pair))
        vocab["".join(pair)] = len(vocab)
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.pre_tokenizer = pieces
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in UNUSED])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    assert tokenizer.get_vocab_size() == TINY.vocab
    return tokenizer


def learned(
    tiny: Tokenizer, pieces: pre_tokenizers.PreTokenizer, number: int, known: set[str]
) -> list[tuple[str, str]]:
    """The merges that byte-pair encoding learns next, behind those of `tiny`."""
    words = Counter(
        piece for text in texts() for piece, _ in pieces.pre_tokenize_str(tiny.normalizer.normalize_str(text))
    )
    spelled = {word: [token.value for token in tiny.model.tokenize(word)] for word in words}
    found: list[tuple[str, str]] = []
    while len(found) < number:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, tokens in spelled.items():
            for pair in pairwise(tokens):
                pairs[pair] += words[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        spelled = {word: _merged(tokens, best) for word, tokens in spelled.items()}
        if "".join(best) not in known:  # else the two make a token that other letters make, too
            known.add("".join(best))
            found.append(best)
    return found


def _merged(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for token in tokens:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return out


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS
    build().save(str(target / FILE))
