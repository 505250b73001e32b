"""Named, versioned evaluation protocols: one YAML holds every number that moves a success rate, each with its source.

A protocol's title is the path of its file below `benchmarks/protocols/`, such as `metaworld/mt50-v1`. The values of a
published file never change: a changed number is a new version. An override on the command line makes the title
`custom`. The hash of all values is written into every result row, and rows of different hashes never share a rate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from omegaconf import MISSING, OmegaConf

from la4vla import config
from la4vla.config.checks import choice
from la4vla.types import UserError

FOLDER = Path(__file__).parents[1] / "protocols"
CUSTOM = "custom"
T = TypeVar("T")


@dataclass
class Protocol:
    """How episodes are run and counted. Nothing changes it once `load` has returned it."""

    name: str = MISSING  # without version, metaworld/mt50
    version: int = MISSING
    suite: str = MISSING  # the simulator suite that runs it: metaworld | libero
    groups: dict[str, list[str]] = field(default_factory=dict)  # reporting group -> env names
    first_episode: int = MISSING  # initial state of a task's first episode
    episodes: int = MISSING  # of each task; initial states first_episode, first_episode + 1, ...
    seed: int = MISSING  # of the policy's flow noise, together with task, episode and query number
    horizon: int = MISSING  # env steps after which the episode has failed
    horizons: dict[str, int] = field(default_factory=dict)  # group -> its own horizon
    wait_steps: int = MISSING  # steps of `wait_action` before the first query; not part of the horizon
    wait_action: list[float] = field(default_factory=list)  # [A]; empty: zeros
    replan_every: int = MISSING  # actions executed before the next query; of a shorter chunk all it has
    views: list[str] = MISSING  # cameras, always upright; a video shows the first
    image_size: int = MISSING  # pixels, square, as rendered
    fast: bool = MISSING  # render without shadows, reflections and anti-aliasing; that changes the images
    orientation: str = "upright"  # upright | mirrored: left and right swapped, as clients show LIBERO
    channels: str = "rgb"  # rgb | bgr: order in which the policy gets them
    crop: int = 0  # side in pixels of the middle square that is kept of a rendered image; 0: all of it
    shown_size: int = 0  # pixels, square, to which images are then resized (bilinear); 0: they stay as they are
    state: str = "own"  # own | a name in Simulator.clients: a published client's numbers, state and actions
    success: str = MISSING  # any_step: the episode ends as a success at the first step that reports it

    @property
    def title(self) -> str:
        return CUSTOM if self.name == CUSTOM else f"{self.name}-v{self.version}"

    @property
    def tasks(self) -> list[str]:
        return [task for tasks in self.groups.values() for task in tasks]

    @property
    def episode_indices(self) -> range:
        return range(self.first_episode, self.first_episode + self.episodes)

    @property
    def hash(self) -> str:
        """16 hex digits over every value; of INPUTS only over those that are not the usual ones."""
        values = {key: value for key, value in asdict(self).items() if INPUTS.get(key) != value}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def inputs(self) -> dict[str, str | int]:
        """What decides how the policy sees an episode, for result rows: the fields of INPUTS."""
        return {key: value for key, value in asdict(self).items() if key in INPUTS}

    @property
    def longest_horizon(self) -> int:
        """The longest of all groups; an env must allow that many steps."""
        return max([self.horizon, *self.horizons.values()])

    def horizon_of(self, task: str) -> int:
        own = (steps for group, steps in self.horizons.items() if task in self.groups[group])
        return next(own, self.horizon)

    def group_of(self, task: str) -> str:
        return next(group for group, tasks in self.groups.items() if task in tasks)


INPUTS = {
    item.name: item.default
    for item in fields(Protocol)
    if item.name in ("orientation", "channels", "crop", "shown_size", "state")
}
"""Fields of how a published client shows its policy an episode -> their usual values, which are in no hash: protocols
are older than these fields."""


def titles() -> list[str]:
    """Every protocol that ships, sorted."""
    return sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def load(title: str, overrides: Sequence[str] = ()) -> Protocol:
    """The protocol of that title, or of the YAML file that `title` names (it then ends in `.yaml`). The file's `base:`
    is the title of a protocol or, where it ends in `.yaml`, a path from the file's folder.

    overrides: `key=value` changes. `groups=` and `horizons=` replace the mapping, `groups.easy=` and `horizons.easy=`
    change one entry of it.
    Raises UserError for an unknown title or key, a missing value, or values that cannot be run.
    """
    path = Path(title) if title.endswith(".yaml") else FOLDER / f"{title}.yaml"
    if not path.is_file():
        raise UserError(
            f"protocol `{title}` does not exist; use one of {', '.join(titles())} or a path to a YAML file."
        )
    protocol: Protocol = config.load(path, overrides, schema=Protocol, shipped=FOLDER)
    if not overrides and path.is_relative_to(FOLDER) and protocol.title != title:
        raise UserError(f"{path}: calls itself `{protocol.title}`; name and version must match the file's place.")
    if overrides or not path.is_relative_to(FOLDER):
        protocol.name = CUSTOM
    protocol.groups = _replaced("groups", protocol.groups, overrides)
    protocol.horizons = _replaced("horizons", protocol.horizons, overrides)
    _validate(protocol, title)
    if set(protocol.groups) == set(protocol.horizons) and any(text.startswith("horizon=") for text in overrides):
        raise UserError(
            f"{title}: `horizon` changes nothing, since every group has its own in `horizons`; add 'horizons={{}}' or "
            "change `horizons`."
        )
    return protocol


def from_dict(raw: dict) -> Protocol:
    """The protocol that a result folder recorded. Raises UserError for the format of an older version."""
    if "view" in raw:
        raise UserError("this result folder was written when protocols had one view; evaluate again to compare.")
    return Protocol(**raw)


def select(protocol: Protocol, tasks: Sequence[str], episodes: int | None) -> list[tuple[str, int]]:
    """(task, episode) of a part of the protocol, in order: of `tasks` (empty: all) the first `episodes` each (None:
    all).

    A part runs each episode exactly as the whole protocol would. Raises UserError for a task or a number of episodes
    that the protocol does not have.
    """
    for task in tasks:
        if task not in protocol.tasks:
            raise UserError(f"task `{task}` is not in {protocol.title}; its tasks are {', '.join(protocol.tasks)}.")
    if episodes is not None and not 1 <= episodes <= protocol.episodes:
        raise UserError(
            f"--episodes {episodes}: {protocol.title} has {protocol.episodes} a task; "
            f"`episodes={episodes}` without dashes changes the protocol instead, which makes it {CUSTOM}."
        )
    indices = protocol.episode_indices[:episodes]
    return [(task, episode) for task in protocol.tasks if not tasks or task in tasks for episode in indices]


def _replaced(key: str, merged: dict[str, T], overrides: Sequence[str]) -> dict[str, T]:
    """The mapping without the entries that an override `key={...}` replaced. merged: what OmegaConf made of both."""
    own = [text for text in overrides if text.startswith((f"{key}=", f"{key}.", f"{key}["))]
    whole = [place for place, text in enumerate(own) if text.startswith(f"{key}=")]
    if not whole:
        return merged
    replaced = OmegaConf.to_container(OmegaConf.from_dotlist(own[whole[-1] :]))
    assert isinstance(replaced, dict)
    return {name: merged[name] for name in replaced[key]}


def _validate(protocol: Protocol, title: str) -> None:
    if protocol.success != "any_step":
        raise UserError(f"{title}: success rule `{protocol.success}` is not known; use any_step.")
    if not protocol.tasks or len(set(protocol.tasks)) != len(protocol.tasks):
        raise UserError(f"{title}: `groups` must list at least one task, and none twice.")
    if not protocol.views or not set(protocol.horizons) <= set(protocol.groups):
        raise UserError(
            f"{title}: `views` must name a camera, and `horizons` only groups that `groups` has; "
            "'horizons={}' empties it."
        )
    if min(protocol.horizons.values(), default=1) < 1:
        raise UserError(f"{title}: `horizons` must be at least 1 each.")
    choice(f"{title}: orientation", protocol.orientation, ("upright", "mirrored"))
    choice(f"{title}: channels", protocol.channels, ("rgb", "bgr"))
    if protocol.crop > protocol.image_size:
        raise UserError(
            f"{title}: crop is {protocol.crop}, the images have {protocol.image_size} pixels a side; lower it."
        )
    for key, lowest in _lowest(protocol):
        if asdict(protocol)[key] < lowest:
            raise UserError(f"{title}: `{key}` is {asdict(protocol)[key]}; it must be at least {lowest}.")


def _lowest(protocol: Protocol) -> Iterable[tuple[str, int]]:
    positive = ("version", "episodes", "horizon", "replan_every", "image_size")
    return [
        *((key, 1) for key in positive),
        *((key, 0) for key in ("first_episode", "seed", "wait_steps", "crop", "shown_size")),
    ]
