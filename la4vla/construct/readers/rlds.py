"""RLDS datasets as TFDS writes them (LanguageTable, Bridge, DROID, Open X-Embodiment), without TensorFlow.

An episode is one record. `dataset_info.json` says which files a split has and how many episodes each, `features.json`
what is in a record; the names of state, action, views and sentences are the config's (docs/rlds.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

from la4vla.config import ConstructConfig
from la4vla.construct.episodes import BadEpisode, Caption, Episode, Frames
from la4vla.construct.ledger import digest
from la4vla.construct.notes import Note
from la4vla.construct.readers.captions import checked, from_changes, joined
from la4vla.construct.readers.checks import (
    MAX_KEY,
    as_jpeg,
    cameras,
    check_size,
    chosen_views,
    episode_key,
    jpeg_size,
    part_of,
    robot_of,
    sentence,
    slug,
    stat_of,
    vectors,
)
from la4vla.construct.readers.example import Values, parse_example
from la4vla.construct.readers.features import (
    FILE,
    STEPS,
    WHOLE,
    Feature,
    RecordFeatures,
    count_steps,
    images_of,
    numbers,
    read_features,
    texts,
)
from la4vla.construct.readers.goals import CaptionedChain, Goals, chain_of, read_chains
from la4vla.construct.readers.tfrecord import RecordPlaces, places, read_record
from la4vla.types import UserError

INFO = "dataset_info.json"
USUAL = {
    "state": ("observation/state",),
    "action": ("action",),
    "instruction": ("language_instruction", "observation/natural_language_instruction", "observation/instruction"),
}
FILES_OPEN, RECORDS_HELD = 64, 2  # in memory: the places of a file's records; a record with its images


class Rlds:
    """A Dataset: a split of one version of an RLDS dataset. A file is looked through when its first episode is read."""

    def __init__(self, config: ConstructConfig) -> None:
        read = config.read
        self._root = Path(read.path)
        self._features = read_features(self._root)
        self._robot_file = robot_of(read)
        self._robot = self._robot_file.robot
        self._columns = {
            what: _named(self._features, self._root, what, named, "tensor")
            for what, named in (("state", read.state), ("action", read.action))
        }
        self._sentences = _named(self._features, self._root, "instruction", read.instruction, "text")
        self._subtasks = read.subtasks
        if self._subtasks:
            _named(self._features, self._root, "subtasks", [self._subtasks], "text")
        there, self._notes = cameras(_views(self._features), read)
        self._views = chosen_views(read, there)
        self._stride, self._quality, self._last = read.frame_stride, config.jpeg_quality, read.last_step
        self._captions = Path(read.captions) if read.captions else None
        self._id = read.episode_id
        self._chains, self._goals = _beside(self._captions, self._id, self._features)
        if self._goals is not None and not self._views:
            raise UserError("read.captions finds goals by the clips' first pictures; set read.images=true.")
        beside = self._captions
        files = sorted(beside.rglob("*")) if beside and beside.is_dir() else [beside] if beside else []
        self._about = digest([stat_of(item) for item in (self._root / FILE, *files)])
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path, first, count in _files(self._root, read.split):
            for number in range(count):
                self._places[episode_key(read.split, first + number)] = (path, number, count)
        self._keys = part_of(tuple(self._places), read)
        wanted = {*self._sentences, *self._views.values(), *self._columns["state"], *self._columns["action"]}
        self._wanted = {f"{STEPS}/{name}" for name in {*wanted, *filter(None, [self._subtasks])}} | {self._id}
        self._scanned = lru_cache(FILES_OPEN)(places)
        self._record = lru_cache(RECORDS_HELD)(self._parsed)

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def notes(self) -> Sequence[Note]:
        return self._notes

    def stamp(self, key: str) -> str:
        path, number, _ = self._places[key]
        return digest(self._robot_file.text, number, stat_of(path), self._about)

    def read(self, key: str) -> Episode:
        path, number, _ = self._places[key]
        where = f"{path}: record {number}"
        record = self._record(key)
        action = self._columns["action"]
        steps = count_steps(self._features.steps[action[0]], self._values(record, action[0], where))
        names = {*self._columns["state"], *action}
        column = {
            name: numbers(name, self._features.steps[name], self._values(record, name, where), steps) for name in names
        }
        frames = steps if self._last else steps - 1
        column = {name: values[:frames].reshape(frames, -1) for name, values in column.items()}
        state, notes = vectors(column, self._columns["state"], self._robot_file.state, "state")
        actions, more = vectors(column, action, self._robot_file.action, "action")
        instruction, found = self._language(record, steps, where)
        return Episode(
            key=key,
            task=slug(instruction, MAX_KEY),
            number=int(key.rsplit("-", 1)[1]),
            instruction=instruction,
            robot=self._robot,
            fps=self._robot_file.control_hz,
            state=state,
            action=actions,
            views=tuple(self._views),
            frame_stride=self._stride,
            frames=partial(self._frames, key),
            notes=(*notes, *more),
            captions=tuple(
                Caption(item.start, min(item.end, frames), item.instruction) for item in found if item.start < frames
            ),
        )

    def video_faults(self, episode: Episode) -> list[str]:
        faults = []
        for name in self._views.values():
            try:
                self._images(episode.key, name, len(episode) + (not self._last))
            except BadEpisode as error:
                faults.append(str(error))
        return faults

    def image_sizes(self, episode: Episode) -> dict[str, tuple[int, int]]:
        sizes = {}
        for view, name in self._views.items():
            sizes[view] = jpeg_size(self._frames(episode.key, view, [0])[0])
            declared = self._features.steps[name].shape[:2]
            if None not in declared:
                check_size(view, 0, sizes[view], [size or 0 for size in declared])
        return sizes

    def _frames(self, key: str, view: str, numbers: Sequence[int]) -> Frames:
        images = self._images(key, self._views[view], None)
        return {number: as_jpeg(images[number], self._quality) for number in numbers}

    def _images(self, key: str, name: str, steps: int | None) -> list[bytes]:
        path, number, _ = self._places[key]
        values = self._values(self._record(key), name, f"{path}: record {number}")
        return images_of(name, self._features.steps[name], values, len(values) if steps is None else steps)

    def _parsed(self, key: str) -> dict[str, Values]:
        """The wanted features of an episode's record. Raises BadEpisode."""
        path, number, count = self._places[key]
        found: RecordPlaces = self._scanned(path)
        if len(found.starts) != count and not found.fault:
            raise BadEpisode(
                f"{path} has {len(found.starts)} records, and {self._root / INFO} says {count}; get both anew."
            )
        if found.fault and len(found.starts) >= count:
            raise BadEpisode(found.fault)  # something stands behind the last record
        try:
            return parse_example(read_record(path, found, number), self._wanted)
        except (ValueError, UnicodeDecodeError) as error:
            if isinstance(error, BadEpisode):
                raise
            raise BadEpisode(f"{path}: record {number} is no tf.train.Example ({error}); get the file anew.") from error

    def _values(self, record: Mapping[str, Values], name: str, where: str) -> Values:
        """Of a feature of the steps. Raises BadEpisode."""
        if f"{STEPS}/{name}" not in record:
            raise BadEpisode(f"{where} has no {STEPS}/{name}, which {FILE} names; get the dataset anew.")
        return record[f"{STEPS}/{name}"]

    def _language(self, record: Mapping[str, Values], steps: int, where: str) -> tuple[str, tuple[Caption, ...]]:
        """(the task's sentence, the captions). Raises BadEpisode."""
        said = ""
        for name in self._sentences:
            every = self._texts(record, name, steps, where)
            changes = next((t for t in range(1, steps) if every[t] != every[0]), 0)
            if changes and name != self._subtasks:
                raise BadEpisode(
                    f"{where}: {name} changes at step {changes}, so it names parts of the episode; set "
                    f"read.subtasks={name}, or leave the episode out."
                )
            said = said or every[0].strip()
        found: tuple[Caption, ...] = ()
        if self._subtasks:
            found = from_changes(self._texts(record, self._subtasks, steps, where))
            said = joined(found) if self._subtasks in self._sentences else said
        if self._chains is not None:
            assert self._captions is not None, "chains are read from a file"
            chain = chain_of(self._chains, self._name(record, where), steps, self._captions)
            found, said = chain.captions, chain.goal
        elif self._goals is not None:
            low = sentence(said)
            first = as_jpeg(self._values(record, next(iter(self._views.values())), where)[0], self._quality)
            found, said = (Caption(0, steps, low),), self._goals.of(low, first)
        return sentence(said), checked(found, steps, where)

    def _texts(self, record: Mapping[str, Values], name: str, steps: int, where: str) -> list[str]:
        return texts(name, self._features.steps[name], self._values(record, name, where), steps)

    def _name(self, record: Mapping[str, Values], where: str) -> str:
        values = record.get(self._id)
        if values is None:
            raise BadEpisode(f"{where} has no {self._id}, which names it in the captions; get the dataset anew.")
        return texts(self._id, self._features.episode[self._id], values, 1)[0]


def _beside(
    path: Path | None, name: str, there: RecordFeatures
) -> tuple[Mapping[str, CaptionedChain] | None, Goals | None]:
    """The captions that read.captions names: whole chains, or goals of clips. Raises UserError."""
    if path is None:
        return None, None
    if not path.exists():
        raise UserError(f"read.captions: no file or folder {path}.")
    if path.suffix != ".json":
        return None, Goals(path)
    if name not in there.episode:
        raise UserError(
            f"read.episode_id is `{name}`; it must name the feature that {path} knows the episodes by, of "
            f"{', '.join(there.episode) or 'which there are none'}."
        )
    return read_chains(path), None


def _views(there: RecordFeatures) -> dict[str, str]:
    """View -> why it is no camera, empty if it is one."""
    found = {}
    for name, feature in there.steps.items():
        if feature.kind == "image":
            deep = feature.dtype != "uint8" or feature.shape[2:] == (1,)
            found[name] = f"one channel of {feature.dtype}" if deep else ""
    return found


def _named(there: RecordFeatures, root: Path, what: str, named: Sequence[str], kind: str) -> tuple[str, ...]:
    """The features of the steps that the config names for `what`, else the usual one. Raises UserError."""
    usual = [name for name in USUAL.get(what, ()) if name in there.steps][:1]
    wanted = tuple(named or usual)
    readable = [name for name, feature in there.steps.items() if _reads(feature, kind)]
    if missing := [name for name in wanted if name not in readable]:
        raise UserError(
            f"read.{what}: {root / FILE} has no {kind} `{missing[0]}` in its steps; it has "
            f"{', '.join(readable) or 'none'}."
        )
    if not wanted:
        raise UserError(f"{root} has none of the usual names for read.{what}; name some of {', '.join(readable)}.")
    return wanted


def _reads(feature: Feature, kind: str) -> bool:
    if kind == "tensor":
        return feature.kind == "tensor" and feature.dtype != "string"
    codes = feature.kind == "tensor" and len(feature.shape) == 1 and feature.dtype in WHOLE
    return feature.dtype == "string" or codes


def _files(root: Path, split: str) -> list[tuple[Path, int, int]]:
    """(file, number of its first episode, how many it has) of each file of a split. Raises UserError."""
    path = root / INFO
    try:
        info = json.loads(path.read_text("utf-8"))
        splits = {item["name"]: item for item in info["splits"]}
        if split not in splits:
            raise UserError(f"read.split is {split}; {root} has {', '.join(splits)}.")
        if (form := info.get("fileFormat", "tfrecord")) != "tfrecord":
            raise UserError(f"{root}: its files are {form}, and tfrecord is read here; write it anew with TFDS.")
        template = splits[split].get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
        counts = [int(count) for count in splits[split]["shardLengths"]]
        files, first = [], 0
        for number, count in enumerate(counts):
            place = f"{number:05d}-of-{len(counts):05d}"
            name = template.format(DATASET=info["name"], SPLIT=split, FILEFORMAT=form, SHARD_X_OF_Y=place)
            files.append((root / name, first, count))
            first += count
        return files
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} does not say which files {split} has ({error!r}); get the dataset anew.") from error
