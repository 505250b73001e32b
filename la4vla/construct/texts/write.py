"""`la4vla construct texts`: kept clips and their episodes become shard folders of conversations.

    FOLDER                      trained wordings, trained scenes
    FOLDER_held_out_scenes      trained wordings about episodes that FOLDER does not show
    FOLDER_held_out_wordings    a share of FOLDER's questions, in words that are trained on nowhere
`FOLDER.texts.jsonl` is the ledger: one row an episode with all of its questions and answers. `FOLDER.texts.json` holds
the numbers of a report, and a fingerprint of everything that the folders depend on; with the same one nothing is
written again. `FOLDER.codec.json` is the codec of action texts with what it was fitted to.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any

from tqdm import tqdm

from la4vla.action_text.action_text import ActionText
from la4vla.action_text.config import ActionTextConfig
from la4vla.config import ConstructConfig
from la4vla.construct import steps
from la4vla.construct.episodes import Dataset, Episode, named
from la4vla.construct.ledger import Ledger, LedgerRow, digest
from la4vla.construct.recording import scenes
from la4vla.construct.texts import rows, scene
from la4vla.construct.texts.annotate import Annotator, EpisodeMotion, KinematicAnnotator, SubTask
from la4vla.construct.texts.endpoint import EndpointAnnotator
from la4vla.data.shards.texts import TextRecord, TextWriter
from la4vla.files import write_atomic
from la4vla.questions.wordings import FILE as WORDINGS
from la4vla.types import UserError

NUMBERS = ".texts.json"

VERSION = 1
"""Raised when the same rows would be written differently."""


def texts(config: ConstructConfig, dataset: Dataset, kept: Ledger) -> Ledger:
    """Brings the ledger of conversations and their folders up to date, and prints what they hold.

    kept: ledger of steps.filter_candidates. Raises UserError.
    """
    settings = config.texts
    chosen = {row["key"]: row for row in steps.rows(kept, dataset)}
    if settings.annotator == "kinematic" and not any(row["kept"] for row in chosen.values()):
        raise UserError(f"{config.out_dir}: no candidate was kept; lower filter.min_quality or review the candidates.")
    like = dataset.read(next(iter(chosen)))
    views = _views(config, like)
    actions = _action_text(config, dataset, chosen) if "actions" in settings.questions else None
    annotations = annotate(config, dataset, chosen, views)
    seen = scene.facts(config, dataset, list(chosen)) if "scene" in settings.questions else None
    facts = {row["key"]: row for row in seen or ()}
    made_by = digest(
        rows.VERSION,
        {name: value for name, value in asdict(settings).items() if name not in ("folder", "codec")},
        actions.to_dict() if actions else None,
        WORDINGS.read_text(encoding="utf-8"),
        list(views),
        config.seed,
    )

    annotated = {row["key"]: row for row in annotations if not row["failed"]}

    def row(key: str) -> dict[str, Any]:
        subtasks = [SubTask(**values) for values in annotated[key]["subtasks"]]
        return _row(config, dataset.read(key), subtasks, views, actions, facts.get(key))

    wanted = {key: digest(made_by, item["of"], facts[key]["of"] if seen else "") for key, item in annotated.items()}
    ledger = steps.fill("writing texts", ledger_path(config), wanted, row)
    about = {"action_text": actions.to_dict() if actions else None, **asdict(settings)}
    paid = {name: sum(row[name] for row in annotations) for name in ("tokens_in", "tokens_out", "calls")}
    _write(config, dataset, ledger, about, paid)
    return ledger


def annotate(config: ConstructConfig, dataset: Dataset, kept: Mapping[str, LedgerRow], views: Sequence[str]) -> Ledger:
    """Brings the ledger of annotations up to date, which folders of all questions and codecs share.

    kept: the rows of steps.filter_candidates by episode. Raises UserError, after all other episodes are done, if more
    than vlm.max_failed_episodes got none.
    """
    annotator = annotator_of(config, views)

    def row(key: str) -> dict[str, Any]:
        return annotator.annotate(dataset.read(key), kept[key]["kept"]).to_dict()

    wanted = annotation_digests(annotator, kept)
    at_once = config.vlm.concurrency if config.texts.annotator == "endpoint" else 1
    ledger = steps.fill("annotating", Path(config.out_dir) / annotations_name(config), wanted, row, at_once)
    _refuse_failed(config, ledger, wanted)
    return ledger


def annotation_digests(annotator: Annotator, kept: Mapping[str, LedgerRow]) -> dict[str, str]:
    """Episode -> `of` of its row of annotations."""
    return {key: digest(annotator.version, item["of"]) for key, item in kept.items()}


def annotations_name(config: ConstructConfig) -> str:
    return f"annotations_{config.texts.annotator}.jsonl"


def ledger_path(config: ConstructConfig) -> Path:
    return Path(config.out_dir) / f"{config.texts.folder}.texts.jsonl"


def annotator_of(config: ConstructConfig, views: Sequence[str]) -> Annotator:
    """views: those that an endpoint is shown."""
    if config.texts.annotator == "endpoint":
        return EndpointAnnotator(config, views)
    return KinematicAnnotator(config.texts.threshold)


def numbers(ledger: Sequence[LedgerRow]) -> dict[str, Any]:
    """What a report says of a folder, JSON-able.

    counts: type of question -> {split: rows}. completion: what its pairs show -> rows. dropped: what action texts do
    not say -> rows.
    """
    every = [item for row in ledger for item in row["rows"]]
    of_questions: dict[str, Counter[str]] = {}
    for item in every:
        of_questions.setdefault(item["question"], Counter())[item["split"].strip("_") or "trained"] += 1
    return {
        "counts": {question: dict(of_splits) for question, of_splits in of_questions.items()},
        "completion": dict(Counter(item["about"] for item in every if item["question"] == "completion")),
        "dropped": dict(sum((Counter(row["dropped"]) for row in ledger), Counter[str]())),
    }


def written(out: Path) -> dict[str, dict[str, Any]]:
    """Folder -> `numbers` of it, of those that were written to `out`."""
    return {path.name.removesuffix(NUMBERS): json.loads(path.read_text()) for path in sorted(out.glob(f"*{NUMBERS}"))}


def _views(config: ConstructConfig, like: Episode) -> tuple[str, ...]:
    """The cameras that are shown. Raises UserError for unknown ones and without any."""
    if not like.views:
        raise UserError(f"{like.key} has no images, and conversations show them; set read.images=true.")
    for view in config.texts.views:
        if view not in like.views:
            raise UserError(f"texts.views: `{view}` is no camera of the episodes; they have {', '.join(like.views)}.")
    return tuple(config.texts.views or like.views)


def _action_text(config: ConstructConfig, dataset: Dataset, kept: Mapping[str, LedgerRow]) -> ActionText:
    """The codec of `actions`. One that is fitted sees the clips of scenes that are not held out, once."""
    first = dataset.read(next(iter(kept)))
    frame = first.robot.frame
    axes = {"forward": frame.forward, "left": frame.left, "up": frame.up}
    made = ActionTextConfig.from_dict({**axes, **config.texts.codec})
    path = Path(config.out_dir) / f"{config.texts.folder}.codec.json"
    trained = [key for key in kept if not rows.split_of(key, config.texts.held_out_scenes, config.seed)]
    of = digest(made.to_dict(), [kept[key]["of"] for key in trained])
    if path.is_file() and (found := json.loads(path.read_text()))["of"] == of:
        return ActionText.from_dict(found["action_text"], first.embodiment)
    episodes = ((dataset.read(key), kept[key]["kept"]) for key in trained)
    clips = (
        (episode.state[item["start"] : item["end"]], episode.action[item["start"] : item["end"]])
        for episode, items in episodes
        for item in items
    )
    opened = ActionText.fitted(made, first.embodiment, clips)
    write_atomic(path, json.dumps({"of": of, "action_text": opened.to_dict()}, indent=1).encode())
    return opened


def _row(
    config: ConstructConfig,
    episode: Episode,
    subtasks: Sequence[SubTask],
    views: Sequence[str],
    actions: ActionText | None,
    seen: LedgerRow | None,
) -> dict[str, Any]:
    """The ledger's row of an episode: its questions and answers. seen: what the simulator says of
    its scenes."""
    settings, seed = config.texts, config.seed
    maker = rows.Rows(episode, subtasks, EpisodeMotion.of(episode), settings, views, actions, seed)
    held_out = rows.split_of(episode.key, settings.held_out_scenes, seed)

    def drafted(question: str, in_held_out_words: bool) -> list[rows.Draft]:
        if question == "scene":
            assert seen is not None, "scenes are looked at where they are asked about"
            return scene.drafts(seen, episode, views, seed, in_held_out_words)
        return maker.drafts(question, in_held_out_words)

    made = []
    for question in settings.questions:
        drafts = drafted(question, False)
        split = "_held_out_scenes" if held_out else ""
        made += [
            {**rows.to_dict(draft, f"{episode.key}-{question}-{number:03d}", episode), "split": split}
            for number, draft in enumerate(drafts)
        ]
        dropped = dict(maker.dropped)
        for number, draft in enumerate([] if held_out else drafted(question, True)):
            if rows.asked_again(episode.key, question, number, settings.held_out_wordings, seed):
                row = rows.to_dict(draft, f"{episode.key}-{question}-{number:03d}", episode)
                made.append({**row, "split": "_held_out_wordings"})
        maker.dropped = dropped
    return {"rows": made, "dropped": maker.dropped}


def _refuse_failed(config: ConstructConfig, ledger: Ledger, wanted: Mapping[str, str]) -> None:
    failed = [row for row in ledger if row["key"] in wanted and row["failed"]]
    if len(failed) > config.vlm.max_failed_episodes:
        raise UserError(
            f"{len(failed)} of {len(wanted)} episodes got no annotation. The first is {failed[0]['key']}: "
            f"{failed[0]['failed']} All others are done; the same command asks about these again, and "
            f"vlm.max_failed_episodes={len(failed)} goes on without them."
        )


def _write(
    config: ConstructConfig, dataset: Dataset, ledger: Ledger, about: Mapping[str, Any], paid: Mapping[str, int]
) -> None:
    """Writes the folders, unless they are what the ledger says already. paid: for the annotations."""
    out, name = Path(config.out_dir), config.texts.folder
    ordered = _balanced(steps.rows(ledger, dataset), config.seed)
    folders = [out / f"{name}{split}" for split in rows.SPLITS if any(_of(row, split) for row in ordered)]
    fingerprint = digest(VERSION, config.shards, [row["of"] for row in ordered], dict(about))
    path = out / f"{name}{NUMBERS}"
    if path.is_file() and json.loads(path.read_text())["fingerprint"] == fingerprint and _all_there(folders):
        print(f"{out / name}: up to date, nothing to write")
    else:
        path.unlink(missing_ok=True)
        for split in rows.SPLITS:
            _write_split(config, dataset, ordered, split, about)
        write_atomic(path, json.dumps({"fingerprint": fingerprint, **numbers(ordered), **paid}, indent=1).encode())
    print(summary_table(ordered))


def _balanced(ledger: Sequence[LedgerRow], seed: int) -> list[LedgerRow]:
    """The ledger's rows without the questions about scenes that would tip the balance of their answers."""
    keep = scene.balanced([item for row in ledger for item in row["rows"]], seed)
    left, first = [], 0
    for row in ledger:
        stays = [item for number, item in enumerate(row["rows"], first) if number in keep]
        first += len(row["rows"])
        left.append({**row, "rows": stays})
    return left


def _write_split(
    config: ConstructConfig, dataset: Dataset, ledger: Sequence[LedgerRow], split: str, about: Mapping[str, Any]
) -> None:
    folder = Path(config.out_dir) / f"{config.texts.folder}{split}"
    total = sum(len(_of(row, split)) for row in ledger)
    if not total:
        if split:
            rmtree(folder, ignore_errors=True)
            return
        raise UserError(f"{folder}: there is no question to write; lower texts.held_out_scenes, or name others.")
    shards = min(config.shards, total) if split else config.shards
    with ExitStack() as stack:
        writer: TextWriter | None = None
        for row in tqdm(ledger, desc=f"writing {folder.name}", unit="episode", disable=None):
            if not _of(row, split):
                continue
            with named(row["key"]):
                episode = dataset.read(row["key"])
                writer = writer or stack.enter_context(
                    TextWriter(folder, shards, episode.embodiment, overwrite=True, about=about)
                )
                for record in _records(episode, _of(row, split), Path(config.out_dir)):
                    writer.add(record)


def _records(episode: Episode, drafts: Sequence[Mapping[str, Any]], out: Path) -> list[TextRecord]:
    """With the images that they show, each of which is read once: the episode's own, and those drawn with toys."""
    wanted: dict[str, set[int]] = {}
    for draft in drafts:
        for view, frame in draft["images"]:
            wanted.setdefault(view, set()).add(frame)
    toys = [view for view in wanted if view not in episode.views]
    drawn = scenes.toy_images(out / scenes.IMAGES / f"{episode.key}.npz") if toys else {}
    jpegs = {
        (view, frame): jpeg
        for view, frames in wanted.items()
        if view in episode.views
        for frame, jpeg in episode.frames(view, sorted(frames)).items()
    }
    jpegs |= {(f"{view}{scene.TOYS}", number): jpeg for (view, number), jpeg in drawn.items()}
    return [TextRecord.from_dict(draft["key"], draft, jpegs) for draft in drafts]


def _of(row: LedgerRow, split: str) -> list[dict[str, Any]]:
    return [item for item in row["rows"] if item["split"] == split]


def _all_there(folders: Sequence[Path]) -> bool:
    return all((folder / "index.json").is_file() for folder in folders)


def summary_table(ledger: Sequence[LedgerRow]) -> str:
    """A text table of the rows by type of question and split."""
    about = numbers(ledger)
    splits = [split.strip("_") or "trained" for split in rows.SPLITS]
    lines = [f"{'question':12}" + "".join(f"{split.replace('_', ' '):>20}" for split in splits)]
    for question, of_splits in about["counts"].items():
        lines.append(f"{question:12}" + "".join(f"{of_splits.get(split, 0):>20,}" for split in splits))
    if about["dropped"]:
        words = ", ".join(f"{what} in {count:,} rows" for what, count in sorted(about["dropped"].items()))
        lines.append(f"what action texts do not say: {words}")
    return "\n".join(lines)
