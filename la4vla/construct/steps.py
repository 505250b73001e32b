"""The steps of the construction: read -> keyframes -> propose -> review -> filter -> shards.

Each is a function of the config that brings its ledger up to date and returns it; each builds on the ledger of the one
before, so any of them may be called alone, interrupted and repeated (ledger.py). Shards are build.py's, the web page of
the review is review's.
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
from la4vla.construct import filter
from la4vla.construct.episodes import BadEpisode, Dataset, named
from la4vla.construct.ledger import Ledger, LedgerRow, digest
from la4vla.construct.propose import judge, keyframe_plot, keyframes
from la4vla.construct.propose.candidates import Candidate, Proposal, Proposer, candidate_key
from la4vla.construct.propose.keyframes import Keyframe
from la4vla.construct.propose.kinematic import Kinematic
from la4vla.construct.propose.vlm import Vlm
from la4vla.construct.propose.whole_episode import WholeEpisode
from la4vla.construct.readers.checks import inspect
from la4vla.construct.scores import REVIEWS, Reviews, Score, episode_digests, standing
from la4vla.types import UserError

READ, KEYFRAMES, CANDIDATES, KEPT = "episodes.jsonl", "keyframes.jsonl", "candidates.jsonl", "kept.jsonl"
"""Ledgers in out_dir. Rows, besides `key` and `of`:

episodes    task, instruction, frames, fps, faults (why it is left out; empty if it is not), notes
keyframes   keyframes: [[frame, kind] ...]
candidates  candidates: [Candidate ...], rejected, tokens_in, tokens_out, calls, proposer, failed (why there are none)
kept        kept: [{start, end, primitive, status, instruction, quality, scores} ...], in the order of time, dropped:
            {low, unreviewed, short, other: how many others there are, and why}
"""

READ_VERSION = 1


def read(config: ConstructConfig, dataset: Dataset) -> Ledger:
    """Reads every episode once and writes down what is wrong with it.

    Raises UserError, after all were read, if more than `max_bad_episodes` have faults.
    """

    def row(key: str) -> dict[str, Any]:
        try:
            episode = dataset.read(key)
        except BadEpisode as error:
            return {"task": "", "instruction": "", "frames": 0, "fps": 0.0, "faults": [str(error)], "notes": []}
        faults, notes = inspect(dataset, episode, config.read.decode)
        return {
            "task": episode.task,
            "instruction": episode.instruction,
            "frames": len(episode),
            "fps": episode.fps,
            "faults": faults,
            "notes": notes,
        }

    settings = asdict(config.read)
    for name in ("max_episodes", "max_bad_episodes"):
        del settings[name]
    wanted = {key: digest(READ_VERSION, settings, dataset.stamp(key)) for key in dataset.keys}
    ledger = _fill("reading", Path(config.out_dir) / READ, wanted, row)
    bad = [item for item in rows(ledger, dataset) if item["faults"]]
    if len(bad) > config.read.max_bad_episodes:
        raise UserError(
            f"{len(bad)} of {len(wanted)} episodes have faults, the first is {bad[0]['key']}: {bad[0]['faults'][0]} "
            f"All are listed in {ledger.path}; repair them, or leave them out with read.max_bad_episodes={len(bad)}."
        )
    return ledger


def rows(ledger: Ledger, dataset: Dataset) -> list[LedgerRow]:
    """The ledger's rows of the dataset's episodes, in the dataset's order."""
    by_key = {row["key"]: row for row in ledger}
    return [by_key[key] for key in dataset.keys if key in by_key]


def detect_keyframes(config: ConstructConfig, dataset: Dataset, episodes: Ledger) -> Ledger:
    """Keyframes of every episode without faults."""

    def row(key: str) -> dict[str, Any]:
        episode = dataset.read(key)
        found = keyframes.detect(episode.state, episode.embodiment.state, config.keyframes)
        return {"keyframes": [[item.frame, item.kind] for item in found]}

    settings = asdict(config.keyframes)
    del settings["plots"]
    wanted = {
        item["key"]: digest(keyframes.VERSION, settings, item["of"])
        for item in rows(episodes, dataset)
        if not item["faults"]
    }
    for key in list(wanted)[: config.keyframes.plots]:
        keyframe_plot.draw(dataset.read(key), config.keyframes, Path(config.out_dir) / "plots" / f"{key}.png")
    return _fill("finding keyframes", Path(config.out_dir) / KEYFRAMES, wanted, row)


def proposer(config: ConstructConfig) -> Proposer:
    """Raises UserError if it cannot be used."""
    if config.proposer == "episode":
        return WholeEpisode()
    return Vlm(config) if config.proposer == "vlm" else Kinematic(config.propose, config.seed)


def wanted_candidates(config: ConstructConfig, dataset: Dataset, found: Ledger, version: str) -> dict[str, str]:
    """Episode -> `of` of its row of candidates. version: the proposer's."""
    made_by = digest(judge.VERSION, asdict(config.judge), asdict(config.propose), version)
    return {item["key"]: digest(made_by, item["of"]) for item in rows(found, dataset)}


def propose(config: ConstructConfig, dataset: Dataset, found: Ledger, again: bool = True) -> Ledger:
    """Judged candidates of every episode that has keyframes. again: try those that failed before once more.

    Raises UserError if the proposer cannot go on, or, after all others are done, if it failed on more than
    `max_failed_episodes`. What is done is kept either way.
    """
    proposes = proposer(config)
    hints = {row["key"]: row for row in found}

    def row(key: str) -> dict[str, Any]:
        episode = dataset.read(key)
        answer = proposes.propose(episode, [Keyframe(frame, kind) for frame, kind in hints[key]["keyframes"]])
        return {
            "candidates": [item.to_dict() for item in judge.judge(answer.proposals, episode, config)],
            "rejected": list(answer.rejected),
            "tokens_in": answer.tokens_in,
            "tokens_out": answer.tokens_out,
            "calls": answer.calls,
            "proposer": proposes.name,
            "failed": answer.failed,
        }

    wanted = wanted_candidates(config, dataset, found, proposes.version)
    at_once = config.vlm.concurrency if config.proposer == "vlm" else 1
    ledger = _fill("proposing", Path(config.out_dir) / CANDIDATES, wanted, row, at_once, again)
    failed = [item for item in rows(ledger, dataset) if item["key"] in wanted and item.get("failed")]
    if len(failed) > config.vlm.max_failed_episodes:
        names = ", ".join(item["key"] for item in failed[:10]) + ", ..." * (len(failed) > 10)
        raise UserError(
            f"{len(failed)} of {len(wanted)} episodes got no proposals, {names}; of the first: {failed[0]['failed']} "
            f"All others are done. `la4vla construct propose` asks about these again, vlm.max_failed_episodes="
            f"{len(failed)} goes on without them; {ledger.path} says why for each."
        )
    return ledger


def filter_candidates(config: ConstructConfig, dataset: Dataset, candidates: Ledger) -> Ledger:
    """Keeps the candidates of at least `min_quality`, by the judge or by people.

    Raises UserError if people are to decide and none has scored any, or their scores are of another dataset.
    """
    proposed = {
        item["key"]: [Candidate.from_dict(raw) for raw in item["candidates"]] for item in rows(candidates, dataset)
    }
    human, least = config.filter.by == "human", config.filter.min_quality
    scores = _scores(config, proposed) if human else {}
    frames = {item["key"]: item["frames"] for item in Ledger(Path(config.out_dir) / READ)}
    stride = dataset.read(next(iter(proposed))).frame_stride if human else 1
    shortest = config.propose.min_clip_frames

    def row(key: str) -> dict[str, Any]:
        fitting = filter.fitting(proposed[key], config.filter.primitives, config.filter.direction_purity)
        made = (
            filter.by_people(fitting, scores, key, frames[key], stride, least, shortest)
            if human
            else filter.by_judge(fitting, least)
        )
        if others := len(proposed[key]) - len(fitting):
            made["dropped"]["other"] = others
        return made

    settings = [filter.VERSION, asdict(config.filter), [stride, shortest] if human else []]
    wanted = {}
    for item in rows(candidates, dataset):
        names = [candidate_key(item["key"], candidate.start) for candidate in proposed[item["key"]]]
        said = [[astuple(score) for score in scores.get(name, ())] for name in names]
        wanted[item["key"]] = digest(settings, item["of"], said if human else [])
    ledger = _fill("filtering", Path(config.out_dir) / KEPT, wanted, row)
    dropped = sum((Counter(item["dropped"]) for item in rows(ledger, dataset)), Counter[str]())
    if dropped["unreviewed"]:
        print(f"filter: {dropped['unreviewed']} candidates are left out because nobody has scored them")
    return ledger


def reviewed(config: ConstructConfig, candidates: Mapping[str, Proposal]) -> list[Score]:
    """People's scores of the candidates as they are proposed now. candidates: by candidate_key.

    Raises UserError if the scores are of another dataset.
    """
    path = Path(config.out_dir) / REVIEWS
    if not path.is_file():
        return []
    with closing(Reviews.open(path, episode_digests(Ledger(path.with_name(READ))))) as reviews:
        return standing(reviews.scores(), candidates)


def _scores(config: ConstructConfig, proposed: Mapping[str, Sequence[Candidate]]) -> dict[str, list[Score]]:
    """candidate_key -> its scores, in the order of the annotators' names."""
    by_key = {candidate_key(key, item.start): item for key, items in proposed.items() for item in items}
    scores: defaultdict[str, list[Score]] = defaultdict(list)
    for score in sorted(reviewed(config, by_key), key=lambda item: item.annotator):
        scores[score.candidate].append(score)
    if not scores:
        raise UserError(
            "filter.by=human, but nobody has scored any of these candidates; score some with `la4vla construct review "
            "CONFIG --serve`, or set filter.by=automatic."
        )
    return scores


def _fill(
    what: str,
    path: Path,
    wanted: Mapping[str, str],
    make: Callable[[str], dict[str, Any]],
    at_once: int = 1,
    again: bool = True,
) -> Ledger:
    """Brings a ledger up to date: makes the rows (key -> `of`) that it lacks, `at_once` of them in threads.

    A row that says why it `failed`, or what `faults` it found, is made of nothing that can be wanted, so the next time
    it is made anew: the cure may lie where no digest sees it. Without `again`, one that failed under what is wanted now
    stays as it is. When one raises, no more are begun and those begun are finished and kept.
    """
    ledger = Ledger(path)
    ledger.forget_all_but(wanted)  # an episode that has got a fault since must not go on to the next step
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
