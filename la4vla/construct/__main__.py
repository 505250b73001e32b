"""`python -m la4vla.construct [STEP] CONFIG.yaml [key=value ...]`: runs one step and those it needs, or all of them.

record       records demonstrations of MetaWorld's or LIBERO's scripted experts, if record.tasks names tasks
read         reads every episode once and lists its faults
keyframes    finds moments of low motion and gripper transitions
propose      proposes labelled spans and judges them; with --dry-run prints only the cost (proposer=vlm)
ground       asks the second judge how well each span's sentence fits its motion (grounding.scorer)
review       prints how far the annotators are and how they agree; --serve opens the page they work on; --export FILE
             and --import FILE write and read their scores as .csv, .jsonl or .labelstudio.json
filter       chooses the candidates that become clips
shards       writes la/, vla/ and task/
texts        writes texts/, conversations about the kept clips; not one of the steps that run without a name;
             with --dry-run prints only the cost (texts.annotator=endpoint)
report       writes report.html and report.json of what the steps have made so far; runs at the end of all steps, too
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from la4vla.config import ConstructConfig, load
from la4vla.construct import steps
from la4vla.construct.build import build
from la4vla.construct.readers import open_dataset
from la4vla.construct.recording.record import record
from la4vla.construct.report import page
from la4vla.construct.report.estimate import estimate, estimate_texts
from la4vla.construct.review.agreement import measure
from la4vla.construct.review.session import ReviewSession
from la4vla.construct.texts.write import texts
from la4vla.shell import exit_status
from la4vla.types import UserError

TEXTS = "texts"
STEPS = ("record", "read", "keyframes", "propose", "ground", "review", "filter", "shards")
DRY_RUN = "--dry-run"


def run(config: ConstructConfig, step: str, dry_run: bool = False) -> None:
    """Brings the steps up to and including `step` up to date; all of them if `step` is empty.

    dry_run: print what `propose` or `texts` would cost instead of running it. Requests cost money, so an episode for
    which the proposer failed is tried again only if `step` is `propose` or empty. Raises UserError.
    """
    last = "filter" if step == TEXTS else step
    wanted = STEPS[: STEPS.index(last) + 1] if last else STEPS
    if config.read.format == "recorded":
        record(config)
    dataset = open_dataset(config)
    if step == TEXTS and dry_run:
        print(estimate_texts(config, dataset).text(config.vlm))
        return
    if "read" in wanted:
        ledger = steps.read(config, dataset)
    if "keyframes" in wanted:
        ledger = steps.detect_keyframes(config, dataset, ledger)
    if step == "propose" and dry_run:
        print(estimate(config, dataset, ledger).text(config.vlm))
        return
    if "propose" in wanted:
        ledger = steps.propose(config, dataset, ledger, again=step in ("", "propose"))
    grounded = None
    if "ground" in wanted:
        if step == "ground" and not config.grounding.scorer:
            raise UserError("there is no second judge to ask; set grounding.scorer to a run of learner grounding.")
        grounded = steps.ground(config, dataset, ledger)
    if "filter" in wanted:
        ledger = steps.filter_candidates(config, dataset, ledger, grounded)
    if "shards" in wanted:
        build(config, dataset, ledger)
    if step == TEXTS:
        texts(config, dataset, ledger)


def review(config: ConstructConfig, serve: bool, incoming: str = "", outgoing: str = "") -> None:
    """Imports and exports scores if files are named, prints progress and agreement, and opens the page if `serve`.

    The page stays open until the process is interrupted. Raises UserError.
    """
    dataset = open_dataset(config)
    if incoming or outgoing:
        with _construct_extra():
            from la4vla.construct.review import exchange
        if incoming:
            print(f"{incoming}: {exchange.import_reviews(config, dataset, Path(incoming))} new scores")
        if outgoing:
            print(f"{outgoing}: {exchange.export_reviews(config, dataset, Path(outgoing))} scores")
    session = ReviewSession(config, dataset)
    print(session.progress_table())
    candidates = {key: item for key, (_, item) in session.candidates.items()}
    print(measure(steps.reviewed(config, candidates), candidates, config.seed).text())
    if serve:
        with _construct_extra():
            from la4vla.construct.review import app
        app.serve(session)
    session.close()


@contextmanager
def _construct_extra() -> Iterator[None]:
    """Wraps an import of packages that only some reviews need. Raises UserError if one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f'the review needs {error.name}; run: pip install "la4vla[construct]".') from error


def _option(words: list[str], name: str) -> str:
    """The word after `name`, or nothing without `name`. Removes both from `words`. Raises UserError without a word."""
    if name not in words:
        return ""
    at = words.index(name)
    if at + 1 == len(words):
        raise UserError(f"{name}: say which file.")
    value = words[at + 1]
    del words[at : at + 2]
    return value


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 2 called without a config. Raises UserError."""
    words = [word for word in arguments if word != DRY_RUN]
    dry_run = DRY_RUN in arguments
    word = words.pop(0) if words and words[0] in (*STEPS, TEXTS, "report") else ""
    serve = word == "review" and "--serve" in words
    if serve:
        words.remove("--serve")
    incoming, outgoing = (_option(words, name) if word == "review" else "" for name in ("--import", "--export"))
    if not words:
        print("usage: python -m la4vla.construct [STEP] CONFIG.yaml [key=value ...]", file=sys.stderr)
        return 2
    config = load(words[0], words[1:])
    if not isinstance(config, ConstructConfig):
        raise UserError(f"{words[0]}: not a construct config; its first line must be `schema: construct`.")
    if dry_run and word not in ("propose", TEXTS):
        raise UserError(f"{DRY_RUN} belongs to one step: la4vla construct propose {words[0]} {DRY_RUN}, or texts.")
    if word == "record" and config.read.format != "recorded":
        raise UserError(
            f"read.format is {config.read.format}, and only `recorded` demonstrations are recorded here; start with "
            "another step."
        )
    if word != "report":
        run(config, word, dry_run)
    if word == "review":
        review(config, serve, incoming, outgoing)
    if word in ("", "report"):
        print(f"report: {page.write(config, open_dataset(config))}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
