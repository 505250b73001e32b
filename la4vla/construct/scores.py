"""Reviews: people's scores of the candidates, in one SQLite file that several people may write at once.

The file is a history: a score is a row that never changes, and undo marks the newest row of an annotator. Every row is
committed and fsynced before `put` returns, so neither a kill nor a power cut loses an acknowledged answer.

A row carries the digest of its episode. Scores therefore cannot count for another dataset's episodes of the same names,
while episodes may be added or repaired at any time (scores of a repaired episode are left out). A row also carries the
digest of the proposal that was judged, so that a score does not outlive a change of label or instruction (`standing`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from threading import Lock

from la4vla.construct.ledger import LedgerRow, digest
from la4vla.construct.propose.candidates import Proposal
from la4vla.types import UserError

REVIEWS = "reviews.sqlite"
"""In out_dir."""

QUALITIES, CONFIDENCES = range(4), range(3)
"""The scales of Tables 9 and 10 of the paper (FACTS 1.3.5)."""

_APPLICATION = 0x4C413456  # "LA4V" in the header marks the file as a review database
_BUSY_S = 30.0  # how long a writer waits for another
_AGAIN_S = 0.01  # between two tries to prepare a file
_SCHEMA = """
CREATE TABLE IF NOT EXISTS history (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    episode_of TEXT NOT NULL,
    candidate TEXT NOT NULL,
    annotator TEXT NOT NULL,
    quality INTEGER NOT NULL CHECK (quality BETWEEN 0 AND 3),
    confidence INTEGER NOT NULL CHECK (confidence BETWEEN 0 AND 2),
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    comment TEXT NOT NULL,
    of TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS by_annotator ON history (annotator, candidate, id);
CREATE TABLE IF NOT EXISTS undone (
    id INTEGER PRIMARY KEY REFERENCES history (id),
    at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
"""
_COLUMNS = 'candidate, annotator, quality, confidence, start, "end", comment, of'
_NEWEST = f"""
SELECT episode_of, {_COLUMNS} FROM history WHERE id IN (
    SELECT max(id) FROM history WHERE id NOT IN (SELECT id FROM undone) GROUP BY annotator, candidate
) ORDER BY id
"""


@dataclass(frozen=True)
class Score:
    """One person's answer about one candidate.

    candidate     candidates.candidate_key(episode, start) of the proposed span
    annotator     the person's name
    quality       0 unusable .. 3 high
    confidence    0 low .. 2 high
    start, end    the span as the annotator wants it, in frames; the proposed one if it was not moved
    comment       free text
    of            proposal_digest of what was judged; empty if unknown, then the score counts for any proposal
    """

    candidate: str
    annotator: str
    quality: int
    confidence: int
    start: int
    end: int
    comment: str = ""
    of: str = ""

    @property
    def episode(self) -> str:
        return self.candidate.rpartition("-")[0]


assert [item.name for item in fields(Score)] == _COLUMNS.replace('"', "").split(", ")


def proposal_digest(proposal: Proposal) -> str:
    """Changes whenever an annotator would have to look again: with span, label, status or instruction."""
    return digest(proposal.start, proposal.end, proposal.primitive, proposal.status, proposal.instruction)


def standing(scores: Iterable[Score], candidates: Mapping[str, Proposal]) -> list[Score]:
    """The scores whose candidate is still proposed as it was when it was judged. candidates: by candidate_key."""
    digests = {key: proposal_digest(item) for key, item in candidates.items()}
    return [item for item in scores if item.candidate in digests and item.of in ("", digests[item.candidate])]


def episode_digests(episodes: Iterable[LedgerRow]) -> dict[str, str]:
    """Episode key -> digest that tells the episode from another dataset's episode of the same name.

    episodes: rows of steps.READ. Episodes with faults are left out, as they have no candidates.
    """
    return {row["key"]: digest(row["task"], row["frames"]) for row in episodes if not row["faults"]}


def read_scores(path: Path) -> list[Score]:
    """The newest score of each (candidate, annotator), in the order of time; none if the file does not exist.

    Raises UserError if the file is not a review database.
    """
    if not path.is_file():
        return []
    with closing(_connect(path)) as database:
        return [Score(*row[1:]) for row in database.execute(_NEWEST)]


class Reviews:
    """An open review database. Safe to share between threads, and to open in several processes at once."""

    def __init__(self, database: sqlite3.Connection, digests: Mapping[str, str]) -> None:
        self._database = database
        self._digests = digests
        self._lock = Lock()

    @staticmethod
    def open(path: Path, digests: Mapping[str, str]) -> Reviews:
        """Opens the file, or creates it. digests: episode_digests of the dataset's episodes.

        Scores of an episode that has changed since are left out, and a line says so. Raises UserError for a file that
        is no review database, or whose scores are mostly of other episodes than the dataset's.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        database = _connect(path)
        known = {
            (Score(*row[1:]).episode, row[0]) for row in database.execute(f"SELECT episode_of, {_COLUMNS} FROM history")
        }
        same = {key for key, of in known if digests.get(key) == of}
        strangers = sorted({key for key, _ in known if key in digests} - same)
        if len(strangers) > len(same) or (known and not same):
            name = strangers[0] if strangers else min(known)[0]
            database.close()
            raise UserError(
                f"{path} holds reviews of another dataset (its episode {name} is not this dataset's); move the file "
                "to the out_dir of its own dataset, or set another out_dir."
            )
        if strangers:
            print(
                f"{path}: {len(strangers)} episodes have changed their task or length since they were scored "
                f"({', '.join(strangers[:3])}{', ...' * (len(strangers) > 3)}); their scores are left out"
            )
        return Reviews(database, digests)

    def put(self, score: Score) -> None:
        """Adds a score. It is on the disk when this returns. Raises UserError for a score that is out of range."""
        self.put_all([score])

    def put_all(self, scores: Iterable[Score]) -> None:
        """Adds all scores, or none of them if it raises UserError. They are on the disk when this returns."""
        values = []
        for score in scores:
            if score.episode not in self._digests:
                raise UserError(
                    f"{score.candidate} is no candidate of this dataset; import the reviews into the dataset they were "
                    "made for."
                )
            if score.quality not in QUALITIES or score.confidence not in CONFIDENCES:
                raise UserError(
                    f"{score.candidate} has quality {score.quality} and confidence {score.confidence}; give a quality "
                    "of 0 to 3 and a confidence of 0 to 2."
                )
            if not score.annotator:
                raise UserError(f"{score.candidate} has a score without an annotator; give a name.")
            values.append((self._digests[score.episode], *astuple(score)))
        insert = f"INSERT INTO history (episode_of, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)"
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(insert, values)

    def undo(self, annotator: str) -> Score | None:
        """Takes the annotator's newest score back and returns it; None if there is none. A score that it had replaced
        counts again."""
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            row = self._database.execute(
                f"SELECT id, {_COLUMNS} FROM history WHERE annotator = ? AND id NOT IN (SELECT id FROM undone) "
                "ORDER BY id DESC LIMIT 1",
                (annotator,),
            ).fetchone()
            if row is None:
                return None
            self._database.execute("INSERT INTO undone (id) VALUES (?)", row[:1])
            return Score(*row[1:])

    def scores(self) -> list[Score]:
        """The newest score of each (candidate, annotator), without those of episodes that have changed since."""
        with self._lock:
            rows = [(row[0], Score(*row[1:])) for row in self._database.execute(_NEWEST)]
        return [score for of, score in rows if self._digests.get(score.episode, of) == of]

    def close(self) -> None:
        with self._lock:
            self._database.close()


def _connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit that fsyncs every commit. Raises UserError if the file is no review database."""
    database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    begun = time.monotonic()
    try:
        while not _prepared(database, begun):
            time.sleep(_AGAIN_S)
    except sqlite3.OperationalError as error:
        database.close()
        raise UserError(
            f"{path} cannot be opened ({error}); close other programs that use it, or repair the disk."
        ) from error
    except sqlite3.DatabaseError as error:
        database.close()
        raise UserError(f"{path} is not a review database ({error}); move it away.") from error
    return database


def _prepared(database: sqlite3.Connection, begun: float) -> bool:
    """Makes a new file a review database, and checks an old one. False: somebody else is preparing it, try again.

    SQLite's busy timeout does not cover the switch to WAL, so connections that open a new file at once collide. begun:
    time of the first try; later than _BUSY_S after it, and for all other troubles, raises sqlite3.DatabaseError.
    """
    try:
        database.execute("PRAGMA synchronous = FULL")
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != _APPLICATION:
            raise sqlite3.DatabaseError("it has other tables")
        if not tables:
            database.execute("PRAGMA journal_mode = WAL")
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.execute(f"PRAGMA application_id = {_APPLICATION}")
                for statement in _SCHEMA.split(";\n"):
                    database.execute(statement)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() - begun > _BUSY_S:
            raise
        return False
    return True
