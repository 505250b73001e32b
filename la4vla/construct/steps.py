"""The steps of the construction: read -> keyframes -> propose -> ground -> review -> filter -> shards.

Each step is a function that brings its ledger up to date and returns it. A step builds on the ledger of the one before,
so each may be called alone, interrupted and repeated (ledger.py). `build` writes the shards, `review` serves the page.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from tqdm import tqdm

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import BadEpisode, Dataset, named
from la4vla.construct.filter import VERSION as FILTER_VERSION
from la4vla.construct.filter import by_grounding, by_judge, by_people, fitting
from la4vla.construct.ledger import Ledger, LedgerRow, digest
from la4vla.construct.notes import proposal_notes, reading_notes
from la4vla.construct.propose import judge, keyframe_plot, keyframes
from la4vla.construct.propose.candidates import Candidate, Proposal, Proposer, candidates_of
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.propose.kinematic import Kinematic
from la4vla.construct.propose.tasks import Tasks
from la4vla.construct.propose.vlm import Vlm
from la4vla.construct.propose.whole_episode import WholeEpisode
from la4vla.construct.readers.checks import check_size, inspect
from la4vla.construct.scores import REVIEWS, Reviews, Score, episode_digests, standing
from la4vla.construct.second_judge import SecondJudge
from la4vla.types import UserError

READ, KEYFRAMES, CANDIDATES, KEPT = "episodes.jsonl", "keyframes.jsonl", "candidates.jsonl", "kept.jsonl"
GROUNDED = "grounded.jsonl"
"""Ledgers in out_dir. Rows, besides `key` and `of`:

episodes    task, instruction, frames, fps, faults (why the episode is left out; empty if it is not), notes: [Note ...],
            sizes: {view: [height, width]}
keyframes   keyframes: [[frame, kind] ...], of two arms [[frame, kind, arm] ...]
candidates  candidates: [Candidate ...], rejected, tokens_in, tokens_out, calls, proposer, failed (why there are none)
grounded    scores: {candidate_key: score of the second judge}, scorer: its name; no ledger without a second judge
kept        kept: [KeptClip ...] in the order of time; dropped: {reason: number of candidates}, the reasons are low,
            unreviewed, ungrounded, short and other
"""

READ_VERSION = 2
FAULTS_PRINTED = 5  # of the faults that a reading finds; the ledger has all of them


def read(config: ConstructConfig, dataset: Dataset) -> Ledger:
    """Reads every episode once and writes down its faults and notes.

    Raises UserError, after all episodes were read, if more than `read.max_bad_episodes` have faults.
    """

    def row(key: str) -> dict[str, Any]:
        try:
            episode = dataset.read(key)
        except BadEpisode as error:
            nothing = {"task": "", "instruction": "", "frames": 0, "fps": 0.0, "notes": [], "sizes": {}}
            return {**nothing, "faults": [str(error)]}
        faults, notes, sizes = inspect(dataset, episode, config.read.decode)
        return {
            "task": episode.task,
            "instruction": episode.instruction,
            "frames": len(episode),
            "fps": episode.fps,
            "faults": faults,
            "notes": [note.to_dict() for note in notes],
            "sizes": sizes,
        }

    settings = asdict(config.read)
    for name in ("skip_episodes", "max_episodes", "max_bad_episodes", "idle"):
        del settings[name]
    wanted = {key: digest(READ_VERSION, settings, dataset.stamp(key)) for key in dataset.keys}
    ledger = fill("reading", Path(config.out_dir) / READ, wanted, row)
    _refuse_odd_sizes(ledger, rows(ledger, dataset))
    bad = [item for item in rows(ledger, dataset) if item["faults"]]
    for note in reading_notes(dataset.notes, (item for item in rows(ledger, dataset) if not item["faults"])):
        print(note.line(len(wanted)))
    for item in bad[:FAULTS_PRINTED]:
        print(f"fault, left out: {item['key']}: {item['faults'][0]}")
    if len(bad) > FAULTS_PRINTED:
        print(f"fault, left out: {len(bad) - FAULTS_PRINTED} more episodes, listed in {ledger.path}")
    if len(bad) > config.read.max_bad_episodes:
        raise UserError(
            f"{len(bad)} of {len(wanted)} episodes have faults, the first is {bad[0]['key']}: {bad[0]['faults'][0]} "
            f"All are listed in {ledger.path}; repair them, or leave them out with read.max_bad_episodes={len(bad)}."
        )
    return ledger


def _refuse_odd_sizes(ledger: Ledger, episodes: Sequence[LedgerRow]) -> None:
    """Gives a fault to each episode whose images have another size than most episodes' of the same view.

    All images of a view must have one size in shards. episodes: the ledger's rows.
    """
    sizes: defaultdict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    for row in episodes:
        for view, size in row["sizes"].items():
            sizes[view][tuple(size)] += not row["faults"]
    usual = {view: counts.most_common(1)[0][0] for view, counts in sizes.items()}
    odd: dict[str, list[str]] = {}
    for row in episodes:
        for view, size in row["sizes"].items():
            try:
                check_size(view, 0, size, usual[view])
            except BadEpisode as error:
                odd.setdefault(row["key"], []).append(str(error))
    if odd:
        with ledger:
            for row in episodes:
                if row["key"] in odd:
                    values = {name: value for name, value in row.items() if name not in ("key", "of")}
                    ledger.put(row["key"], "", {**values, "faults": [*row["faults"], *odd[row["key"]]]})


def rows(ledger: Ledger, dataset: Dataset) -> list[LedgerRow]:
    """The ledger's rows, in the order of the dataset's episodes."""
    by_key = {row["key"]: row for row in ledger}
    return [by_key[key] for key in dataset.keys if key in by_key]


def detect_keyframes(config: ConstructConfig, dataset: Dataset, episodes: Ledger) -> Ledger:
    """Finds the keyframes of every episode without faults. episodes: ledger of `read`."""

    def row(key: str) -> dict[str, Any]:
        episode = dataset.read(key)
        return {"keyframes": [keyframes.as_row(item) for item in keyframes.detect_all(episode.arms, config.keyframes)]}

    settings = asdict(config.keyframes)
    del settings["plots"]
    wanted = {
        item["key"]: digest(keyframes.VERSION, settings, item["of"])
        for item in rows(episodes, dataset)
        if not item["faults"]
    }
    for key in list(wanted)[: config.keyframes.plots]:
        keyframe_plot.draw(dataset.read(key), config.keyframes, Path(config.out_dir) / "plots" / f"{key}.png")
    return fill("finding keyframes", Path(config.out_dir) / KEYFRAMES, wanted, row)


def proposer(config: ConstructConfig) -> Proposer:
    """The proposer that the config names. Raises UserError if it cannot be used."""
    if config.proposer == "episode":
        return WholeEpisode()
    if config.proposer == "tasks":
        return Tasks(config.propose.min_clip_frames)
    return Vlm(config) if config.proposer == "vlm" else Kinematic(config.propose, config.seed)


def candidate_digests(config: ConstructConfig, dataset: Dataset, hints: Ledger, version: str) -> dict[str, str]:
    """Episode -> `of` of its row of candidates. hints: ledger of `detect_keyframes`. version: the proposer's."""
    made_by = digest(judge.VERSION, asdict(config.judge), asdict(config.propose), version)
    return {item["key"]: digest(made_by, item["of"]) for item in rows(hints, dataset)}


def propose(config: ConstructConfig, dataset: Dataset, hints: Ledger, again: bool = True) -> Ledger:
    """Makes and judges the candidates of every episode that has keyframes.

    hints: ledger of `detect_keyframes`. again: try episodes that failed before once more. Raises UserError if the
    proposer cannot go on, or, after all other episodes are done, if it failed on more than `vlm.max_failed_episodes`.
    Finished episodes are kept either way.
    """
    proposes = proposer(config)
    keyframes_of = {row["key"]: row["keyframes"] for row in hints}

    def row(key: str) -> dict[str, Any]:
        episode = dataset.read(key)
        result = proposes.propose(episode, [Keyframe(*values) for values in keyframes_of[key]])
        return {
            "candidates": [item.to_dict() for item in judge.judge(result.proposals, episode, config)],
            "rejected": list(result.rejected),
            "tokens_in": result.tokens_in,
            "tokens_out": result.tokens_out,
            "calls": result.calls,
            "proposer": proposes.name,
            "failed": result.failed,
        }

    wanted = candidate_digests(config, dataset, hints, proposes.version)
    at_once = config.vlm.concurrency if config.proposer == "vlm" else 1
    ledger = fill("proposing", Path(config.out_dir) / CANDIDATES, wanted, row, at_once, again)
    for note in proposal_notes(config.proposer, rows(hints, dataset), rows(ledger, dataset)):
        print(note.line(len(wanted)))
    failed = [item for item in rows(ledger, dataset) if item["key"] in wanted and item.get("failed")]
    if len(failed) > config.vlm.max_failed_episodes:
        names = ", ".join(item["key"] for item in failed[:10]) + ", ..." * (len(failed) > 10)
        raise UserError(
            f"{len(failed)} of {len(wanted)} episodes got no proposals ({names}). The first: {failed[0]['failed']} "
            f"All others are done. `la4vla construct propose` asks about these episodes again; vlm.max_failed_episodes="
            f"{len(failed)} goes on without them. {ledger.path} has the reason for each."
        )
    return ledger


def ground(config: ConstructConfig, dataset: Dataset, candidates: Ledger) -> Ledger | None:
    """Asks the second judge about every candidate; None without one, and then its old scores are removed.

    candidates: ledger of `propose`. Raises UserError for a scorer that cannot be opened and episodes without images.
    """
    path = Path(config.out_dir) / GROUNDED
    if not config.grounding.scorer:
        path.unlink(missing_ok=True)
        return None
    judging = SecondJudge(config.grounding)
    proposed = {item["key"]: candidates_of(item) for item in rows(candidates, dataset)}

    def row(key: str) -> dict[str, Any]:
        found = judging.scores(dataset.read(key), proposed[key]) if proposed[key] else {}
        return {"scores": found, "scorer": judging.scorer.name}

    by = judging.digest
    wanted = {item["key"]: digest(by, item["of"]) for item in rows(candidates, dataset)}
    return fill("grounding", path, wanted, row)


def grounding_scores(config: ConstructConfig) -> dict[str, float]:
    """candidate_key -> the second judge's score of all that it was asked about; empty without it."""
    path = Path(config.out_dir) / GROUNDED
    return {key: score for row in Ledger(path) for key, score in row["scores"].items()} if path.is_file() else {}


def filter_candidates(
    config: ConstructConfig, dataset: Dataset, candidates: Ledger, grounded: Ledger | None = None
) -> Ledger:
    """Keeps the candidates whose quality is at least `filter.min_quality`, by the judge or by people, and those whose
    words fit their motion, where the second judge is asked.

    candidates: ledger of `propose`. grounded: of `ground`. Raises UserError if people are to decide and nobody has
    scored any candidate, or if the scores belong to another dataset.
    """
    proposed = {item["key"]: candidates_of(item) for item in rows(candidates, dataset)}
    human, least = config.filter.by == "human", config.filter.min_quality
    scores = _scores(config, proposed) if human else {}
    frames = {item["key"]: item["frames"] for item in Ledger(Path(config.out_dir) / READ)}
    stride = dataset.read(next(iter(proposed))).frame_stride if human else 1
    shortest = config.propose.min_clip_frames
    by = config.filter.by
    fit = {item["key"]: item["scores"] for item in grounded or ()}
    asked_second = {item["key"]: item["of"] for item in grounded or ()}

    def row(key: str) -> dict[str, Any]:
        chosen = config.filter
        usable = fitting([*proposed[key].values()], chosen.primitives, chosen.direction_purity, chosen.arms)
        if by in ("grounding", "both"):
            rules = least if by == "both" else 0.0
            made = by_grounding(usable, fit[key], key, config.filter.min_grounding, rules)
        elif human:
            made = by_people(usable, scores, key, frames[key], stride, least, shortest)
        else:
            made = by_judge(usable, least)
        if others := len(proposed[key]) - len(usable):
            made["dropped"]["other"] = others
        return made

    chosen = {name: value for name, value in asdict(config.filter).items() if value or name != "arms"}
    if config.filter.arms and proposed and not dataset.read(next(iter(proposed))).robot.arms:
        raise UserError("filter.arms chooses among two arms, and this robot has one; leave it empty.")
    settings = [FILTER_VERSION, chosen, [stride, shortest] if human else []]
    wanted = {}
    for item in rows(candidates, dataset):
        given = [[astuple(score) for score in scores.get(name, ())] for name in proposed[item["key"]]]
        second = asked_second[item["key"]] if by in ("grounding", "both") else ""
        wanted[item["key"]] = digest(settings, item["of"], given if human else [], *([second] if second else []))
    ledger = fill("filtering", Path(config.out_dir) / KEPT, wanted, row)
    dropped = sum((Counter(item["dropped"]) for item in rows(ledger, dataset)), Counter[str]())
    if dropped["unreviewed"]:
        print(f"filter: {dropped['unreviewed']} candidates are left out because nobody has scored them")
    return ledger


def reviewed(config: ConstructConfig, candidates: Mapping[str, Proposal]) -> list[Score]:
    """People's scores of the candidates as they are proposed now. candidates: by candidate_key.

    Raises UserError if the scores belong to another dataset.
    """
    path = Path(config.out_dir) / REVIEWS
    if not path.is_file():
        return []
    with closing(Reviews.open(path, episode_digests(Ledger(path.with_name(READ))))) as reviews:
        return standing(reviews.scores(), candidates)


def _scores(config: ConstructConfig, proposed: Mapping[str, Mapping[str, Candidate]]) -> dict[str, list[Score]]:
    """candidate_key -> its scores in the order of annotators' names. proposed: episode -> its candidates by key."""
    by_key = {key: item for candidates in proposed.values() for key, item in candidates.items()}
    scores: defaultdict[str, list[Score]] = defaultdict(list)
    for score in sorted(reviewed(config, by_key), key=lambda item: item.annotator):
        scores[score.candidate].append(score)
    if not scores:
        raise UserError(
            "filter.by=human, but nobody has scored any of these candidates; score some with `la4vla construct review "
            "CONFIG --serve`, or set filter.by=automatic."
        )
    return scores


def fill(
    what: str,
    path: Path,
    wanted: Mapping[str, str],
    make: Callable[[str], dict[str, Any]],
    at_once: int = 1,
    again: bool = True,
) -> Ledger:
    """Brings a ledger up to date by making the rows that it lacks.

    what: the work, for the progress bar. wanted: episode -> the `of` that its row must have. make: episode -> values of
    its row. at_once: number of threads.

    A row with a reason in `failed` or with `faults` gets an empty `of`, so the next run makes it anew: its cure may lie
    where no digest sees it. again: if false, a row that failed under the present settings stays as it is. When `make`
    raises, no more rows are begun; those begun are finished and kept.
    """
    ledger = Ledger(path)
    ledger.forget_all_but(wanted)  # an episode with a new fault must not go on to the next step
    failed = {row["key"] for row in ledger if row.get("failed") and row.get("tried") == wanted[row["key"]]}
    left = set() if again else failed
    missing = [key for key, of in wanted.items() if ledger.get(key, of) is None and key not in left]
    if not missing:
        return ledger
    with ledger, tqdm(desc=what, unit="episode", initial=len(wanted) - len(missing), total=len(wanted)) as bar:

        def made(key: str) -> dict[str, Any]:
            with named(key):
                return make(key)

        def put(key: str, values: dict[str, Any]) -> None:
            wrong = values.get("failed") or values.get("faults")
            ledger.put(key, "" if wrong else wanted[key], {**values, "tried": wanted[key]} if wrong else values)
            bar.update()

        if at_once == 1:
            for key in missing:
                put(key, made(key))
            return ledger
        pool = ThreadPoolExecutor(at_once)
        futures = {pool.submit(made, key): key for key in missing}
        try:
            for future in as_completed(futures.copy()):
                put(futures.pop(future), future.result())
        finally:
            pool.shutdown(cancel_futures=True)
            for future, key in futures.items():
                if not future.cancelled() and future.exception() is None:
                    put(key, future.result())
    return ledger
