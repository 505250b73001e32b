"""The server's log: what is wrong with each client's messages, once a connection, so that no client fills a disk."""

from __future__ import annotations

import re
import sys

from la4vla.serve.input_check import InputDifference

MAX_KINDS = 30
"""Kinds of one connection that are logged; more come from something that tries messages by chance."""

PARTICULARS = re.compile(r"'[^']*'|\d[\d.e+-]*")
"""What differs between two errors of one kind: quoted values, and numbers."""


class ClientLog:
    """The log's lines about one connection, on stderr.

    name   of the client in the log
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kinds: set[str] = set()
        self._noted: set[str] = set()

    def note(self, difference: InputDifference) -> None:
        """Logs a difference to the training data, unless it was logged before."""
        if difference.about not in self._noted:
            self._noted.add(difference.about)
            self._print(difference.sentence)

    def error(self, sentence: str) -> None:
        """Logs an error, unless one of its kind was logged before."""
        kind = PARTICULARS.sub("", sentence)
        if kind in self._kinds or len(self._kinds) > MAX_KINDS:
            return
        self._kinds.add(kind)
        if len(self._kinds) > MAX_KINDS:
            sentence = "further kinds of errors of this connection are not logged"
        self._print(sentence)

    def _print(self, sentence: str) -> None:
        print(f"{self._name}: {printable(sentence)}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """The text with a question mark for every character that is not printable."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
