"""Exchange: reviews to and from files, for people who score elsewhere (FACTS 1.3.5). The file's name sets the format.

    .csv, .jsonl         one row a score, with the fields of scores.Score
    .labelstudio.json    Label Studio's tasks, one a candidate, with the scores so far as annotations; the labelling
                         config is written beside it as .labelstudio.xml

A file is imported completely or not at all. Importing it again changes nothing.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from la4vla.config import ConstructConfig
from la4vla.construct import steps
from la4vla.construct.episodes import Dataset
from la4vla.construct.ledger import Ledger
from la4vla.construct.propose.candidates import Candidate, candidates_of
from la4vla.construct.scores import CONFIDENCES, QUALITIES, REVIEWS, Reviews, Score, episode_digests, proposal_digest
from la4vla.files import write_atomic
from la4vla.types import UserError

COLUMNS = tuple(item.name for item in fields(Score))
STUDIO = ".labelstudio.json"
STUDIO_CONFIG = """<View>
  <Text name="clip" value="$text"/>
  <TextArea name="annotator" toName="clip" maxSubmissions="1" placeholder="your name"/>
  <Header value="Quality: 0 unusable, 1 low, 2 acceptable, 3 high"/>
  <Choices name="quality" toName="clip" choice="single-radio" required="true">
    <Choice value="0"/><Choice value="1"/><Choice value="2"/><Choice value="3"/>
  </Choices>
  <Header value="Confidence: 0 low, 1 medium, 2 high"/>
  <Choices name="confidence" toName="clip" choice="single-radio" required="true">
    <Choice value="0"/><Choice value="1"/><Choice value="2"/>
  </Choices>
  <Header value="First frame and frame after the last, where they should be elsewhere"/>
  <Number name="start" toName="clip"/>
  <Number name="end" toName="clip"/>
  <TextArea name="comment" toName="clip" maxSubmissions="1"/>
</View>
"""
"""What Label Studio shows of a task, and the names under which the answers come back."""

_SHOWN = 5  # faults of a file that its error lists

Candidates = Mapping[str, Candidate]
"""candidate_key -> candidate."""
ScoreFields = dict[str, Any]
"""A score in a file, by the names of COLUMNS, without empty fields."""


class _ScoreRow(BaseModel):
    """The fields and types of a score in a file."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    candidate: str
    annotator: Annotated[str, StringConstraints(min_length=1, max_length=40)]
    quality: Annotated[int, Field(ge=QUALITIES[0], le=QUALITIES[-1])]
    confidence: Annotated[int, Field(ge=CONFIDENCES[0], le=CONFIDENCES[-1])]
    start: int | None = None
    end: int | None = None
    comment: str = ""
    of: str = ""


class _Result(BaseModel):
    from_name: str
    value: dict[str, Any]


class _Annotation(BaseModel):
    result: list[_Result]
    completed_by: int | str | dict[str, Any] | None = None
    was_cancelled: bool = False


class _Task(BaseModel):
    """The part of Label Studio's task format that is read; the format has much more."""

    data: dict[str, Any]
    annotations: list[_Annotation] = []


def export_reviews(config: ConstructConfig, dataset: Dataset, path: Path) -> int:
    """Writes the scores that count now; for Label Studio, all candidates too. Returns the number of scores.

    Raises UserError for an unknown suffix, or if the reviews belong to another dataset.
    """
    write, _ = _format(path)
    candidates = _candidates(config, dataset, Ledger(Path(config.out_dir) / steps.READ))
    scores = steps.reviewed(config, candidates)
    write_atomic(path, write(candidates, scores).encode())
    if path.name.endswith(STUDIO):
        write_atomic(path.with_suffix(".xml"), STUDIO_CONFIG.encode())
    return len(scores)


def import_reviews(config: ConstructConfig, dataset: Dataset, path: Path) -> int:
    """Adds those scores of a file that are new. Returns their number.

    A missing start or end is the proposed one. A missing `of` is that of the present proposal. Raises UserError with
    the rows if any row is incomplete, doubled, out of range, or of no present candidate.
    """
    _, read = _format(path)
    episodes = Ledger(Path(config.out_dir) / steps.READ)
    candidates = _candidates(config, dataset, episodes)
    frames = {row["key"]: int(row["frames"]) for row in episodes}
    try:
        rows = list(read(path.read_text("utf-8-sig")))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; --export writes a file to start from.") from error
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, ValidationError) as error:
        raise UserError(
            f"{path} is not in the format of its suffix ({_short(error)}); nothing was imported, export a file to see "
            "the format."
        ) from error
    scores: dict[tuple[str, str], Score] = {}
    faults = []
    for where, values in rows:
        try:
            score = _score(values, candidates, frames)
        except (UserError, ValidationError) as error:
            faults.append(f"{where}: {_short(error)}")
            continue
        if (score.candidate, score.annotator) in scores:
            faults.append(f"{where}: a second score of {score.candidate} by {score.annotator}")
        scores[score.candidate, score.annotator] = score
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(f"{path}: nothing was imported; correct or remove {'; '.join(faults[:_SHOWN])}{more}.")
    with closing(Reviews.open(Path(config.out_dir) / REVIEWS, episode_digests(episodes))) as reviews:
        present = {(item.candidate, item.annotator): item for item in reviews.scores()}
        new = [score for name, score in scores.items() if present.get(name) != score]
        reviews.put_all(new)
    return len(new)


def _candidates(config: ConstructConfig, dataset: Dataset, episodes: Ledger) -> Candidates:
    """The present candidates of the episodes without faults. episodes: ledger of steps.read.

    Raises UserError if there are none.
    """
    ledger = Ledger(Path(config.out_dir) / steps.CANDIDATES)
    usable = episode_digests(episodes)
    candidates: dict[str, Candidate] = {}
    for row in steps.rows(ledger, dataset):
        if row["key"] in usable:
            candidates |= candidates_of(row)
    if not candidates:
        raise UserError(f"{ledger.path} has no candidates; run `la4vla construct propose` first.")
    return candidates


def _score(values: ScoreFields, candidates: Candidates, frames: Mapping[str, int]) -> Score:
    """A score of a file. frames: episode -> its length.

    Raises ValidationError for values that are impossible, UserError for values that do not fit this dataset.
    """
    row = _ScoreRow(**values)
    item = candidates.get(row.candidate)
    if item is None:
        raise UserError(f"`{row.candidate}` is no candidate here")
    of = proposal_digest(item)
    if row.of not in ("", of):
        raise UserError(f"{row.candidate} had another span, label or instruction when it was scored")
    start, end = item.start if row.start is None else row.start, item.end if row.end is None else row.end
    score = Score(row.candidate, row.annotator, row.quality, row.confidence, start, end, row.comment, of)
    if not 0 <= start < end <= frames[score.episode]:
        raise UserError(f"frames {start} to {end} are no span of an episode of {frames[score.episode]}")
    return score


def _short(error: Exception) -> str:
    """The first fault of an error in few words."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else first["msg"]
    return str(error)


def _to_csv(candidates: Candidates, scores: Sequence[Score]) -> str:
    out = io.StringIO()
    table = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(score) for score in scores)
    return out.getvalue()


def _from_csv(text: str) -> Iterator[tuple[str, ScoreFields]]:
    table = csv.DictReader(io.StringIO(text), restkey="more cells than columns", strict=True)
    for row in table:
        yield f"line {table.line_num}", {name: value for name, value in row.items() if value}


def _to_jsonl(candidates: Candidates, scores: Sequence[Score]) -> str:
    return "".join(json.dumps(asdict(score)) + "\n" for score in scores)


def _from_jsonl(text: str) -> Iterator[tuple[str, ScoreFields]]:
    row = TypeAdapter(ScoreFields)
    for number, line in enumerate(text.split("\n"), 1):  # a JSON string may contain all other kinds of line break
        if line.strip():
            yield f"line {number}", row.validate_json(line)


def _to_studio(candidates: Candidates, scores: Sequence[Score]) -> str:
    given: defaultdict[str, list[Score]] = defaultdict(list)
    for score in scores:
        given[score.candidate].append(score)
    tasks = []
    for key, item in candidates.items():
        text = f'{key}, frames {item.start} to {item.end}: {item.primitive} ({item.status}), "{item.instruction}"'
        facts = {**item.to_dict(), "candidate": key, "of": proposal_digest(item), "text": text}
        tasks.append({"data": facts, "annotations": [{"result": _answers(score)} for score in given[key]]})
    return json.dumps(tasks, indent=1)


def _answers(score: Score) -> list[dict[str, Any]]:
    """A score as the results of an annotation."""
    values = {
        "annotator": ("textarea", {"text": [score.annotator]}),
        "quality": ("choices", {"choices": [str(score.quality)]}),
        "confidence": ("choices", {"choices": [str(score.confidence)]}),
        "start": ("number", {"number": score.start}),
        "end": ("number", {"number": score.end}),
    }
    if score.comment:
        values["comment"] = ("textarea", {"text": [score.comment]})
    return [
        {"from_name": name, "to_name": "clip", "type": kind, "value": value} for name, (kind, value) in values.items()
    ]


def _from_studio(text: str) -> Iterator[tuple[str, ScoreFields]]:
    for number, task in enumerate(TypeAdapter(list[_Task]).validate_json(text), 1):
        about = {name: task.data[name] for name in ("candidate", "of") if name in task.data}
        for annotation in task.annotations:
            if not annotation.was_cancelled:
                values: ScoreFields = {"annotator": _person(annotation.completed_by)}
                for result in annotation.result:
                    answer = next(iter(result.value.values()), None)
                    values[result.from_name] = answer[0] if isinstance(answer, list) and answer else answer
                given = {name: value for name, value in values.items() if value is not None}
                yield f"task {number}", {**about, **given}


def _person(completed_by: int | str | Mapping[str, Any] | None) -> str | None:
    """Label Studio's own name of the annotator, which counts if the field `annotator` is empty."""
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return None if completed_by is None else str(completed_by)


Writer = Callable[[Candidates, Sequence[Score]], str]
Reader = Callable[[str], Iterator[tuple[str, ScoreFields]]]
FORMATS: dict[str, tuple[Writer, Reader]] = {
    ".csv": (_to_csv, _from_csv),
    ".jsonl": (_to_jsonl, _from_jsonl),
    STUDIO: (_to_studio, _from_studio),
}


def _format(path: Path) -> tuple[Writer, Reader]:
    """Writer and reader of a file by its suffix. Raises UserError for an unknown one."""
    for suffix, both in FORMATS.items():
        if path.name.endswith(suffix):
            return both
    raise UserError(f"{path} has none of the known suffixes; let its name end in {', '.join(FORMATS)}.")
