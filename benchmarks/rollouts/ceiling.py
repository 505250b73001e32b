"""The ceiling of policies that write: demonstrations told as text and played again, without a model.

Every kept clip of a demonstration becomes an action text, as the texts that a model learns are made; the texts are read
and played one after the other from the demonstration's own initial state. What fails here, no model can do better:
merging, codec or playing lose it. The demonstration's own commands, replayed, stand beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.results import stats
from la4vla.action_text.action_text import CODECS, ActionText
from la4vla.action_text.config import ActionTextConfig
from la4vla.action_text.motion import Motion
from la4vla.config import ConstructConfig
from la4vla.construct.episodes import Episode
from la4vla.construct.ledger import Ledger
from la4vla.construct.readers import open_dataset
from la4vla.construct.steps import KEPT
from la4vla.sim.env import Env
from la4vla.sim.registry import Simulator, simulator
from la4vla.types import UserError

COMMANDS = "recorded commands"
MOTIONS = ("commanded", "reached")
LEAST = 0.8
"""Share of the expert's successes below which a codec is wrong."""

AFTER = 10  # steps in which a success may still come when the last command is played: the arm lags behind


@dataclass(frozen=True)
class Demonstration:
    """A recorded success.

    sent   float32 [T, A], the commands with their noise, as they were sent to the env
    spans  of its kept clips, [start, end) frames, in the order of time
    """

    episode: Episode
    sent: np.ndarray
    spans: tuple[tuple[int, int], ...]

    def clips(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(states with the one behind, the expert's commands) of every clip: what models are trained on."""
        for start, end in self.spans:
            yield self.episode.state[start : end + 1], self.episode.action[start:end]


@dataclass
class CeilingRow:
    """What the replay of one codec gave.

    condition  `recorded commands`, or codec and motion
    tasks      task -> whether each demonstration's replay succeeded
    chars      characters of each text
    rows       rows of each text
    steps      control steps of each replay
    dropped    what texts do not say -> rows with some of it
    """

    condition: str
    tasks: dict[str, list[bool]] = field(default_factory=dict)
    chars: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> stats.Rate:
        return stats.rate([success for successes in self.tasks.values() for success in successes])


def measure(
    config: ConstructConfig,
    episodes: int,
    codecs: Sequence[str] = CODECS,
    motions: Sequence[str] = MOTIONS,
    settings: ActionTextConfig | None = None,
) -> list[CeilingRow]:
    """Replays the first `episodes` demonstrations of each task under every codec and motion.

    settings: merging and playing. Raises UserError where demonstrations were not recorded here or clips are missing.
    """
    demonstrations = _demonstrations(config, episodes)
    sim = simulator(config.record.simulator, "record.simulator")
    sim.prepare()
    env = sim.make_env((), config.record.image_size, sim.max_steps, True)
    try:
        rows = [_replay_commands(env, sim, demonstrations)]
        frame = demonstrations[0].episode.robot.frame
        for codec in codecs:
            for motion in motions:
                raw = {**(settings or ActionTextConfig()).to_dict(), "codec": codec, "motion": motion}
                axes = {"forward": frame.forward, "left": frame.left, "up": frame.up}
                wanted = ActionTextConfig.from_dict({**raw, **axes})
                clips = (clip for item in demonstrations for clip in item.clips())
                action = ActionText.fitted(wanted, sim.embodiment, clips)
                rows.append(_replay_texts(env, sim, demonstrations, action))
    finally:
        env.close()
    return rows


def table(rows: Sequence[CeilingRow]) -> str:
    """The table that the command prints."""
    tasks = list(rows[0].tasks)
    width = max(len(row.condition) for row in rows) + 2
    lines = [f"{number + 1}: {task}" for number, task in enumerate(tasks)]
    heads = "".join(f"{number + 1:>9d}" for number in range(len(tasks)))
    lines.append(f"{'':{width}}{heads}{'all':>8}{'chars':>8}{'rows':>6}{'steps':>7}")
    for row in rows:
        cells = "".join(f"{sum(row.tasks[task])}/{len(row.tasks[task])}".rjust(9) for task in tasks)
        texts = f"{np.mean(row.chars):8.0f}{np.mean(row.rows):6.1f}" if row.chars else f"{'':14}"
        lines.append(f"{row.condition:{width}}{cells}{100 * row.rate.value:7.0f}%{texts}{np.mean(row.steps):7.0f}")
    least = LEAST * rows[0].rate.value
    for row in rows[1:]:
        if row.rate.value < least:
            lines.append(f"{row.condition}: below {100 * LEAST:.0f} % of the expert's; do not train on these texts.")
    return "\n".join(lines)


def to_json(rows: Sequence[CeilingRow]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]


def _demonstrations(config: ConstructConfig, episodes: int) -> list[Demonstration]:
    """The first `episodes` of each task."""
    if config.read.format != "recorded":
        raise UserError(
            f"read.format is {config.read.format}; give a config of recorded demonstrations, since only they can be "
            "played again from their initial states."
        )
    dataset, path = open_dataset(config), Path(config.out_dir) / KEPT
    kept = {row["key"]: row["kept"] for row in Ledger(path)}
    taken: Counter[str] = Counter()
    demonstrations = []
    for key in dataset.keys:
        if key not in kept:
            raise UserError(f"{path}: has no clips of {key}; run `la4vla construct filter` with this config first.")
        task = key.rpartition("-")[0]
        taken[task] += 1
        if taken[task] > episodes:
            continue
        episode = dataset.read(key)
        assert episode.executed is not None, "recorded episodes have it"
        spans = tuple((int(item["start"]), int(item["end"])) for item in kept[key])
        demonstrations.append(Demonstration(episode, episode.executed, spans))
    return demonstrations


def _start(env: Env, sim: Simulator, episode: Episode) -> np.ndarray:
    """The state [S] from which the demonstration was recorded."""
    state = env.reset(episode.task, episode.number).state
    for _ in range(sim.wait_steps):
        state = env.step(np.array(sim.wait, np.float32)).state
    return state


@dataclass
class _Replay:
    """One episode of an env, command by command."""

    env: Env
    state: np.ndarray
    steps: int = 0
    success: bool = False
    over: bool = False

    def play(self, commands_TA: np.ndarray) -> None:
        for command in commands_TA:
            if self.over:
                return
            result = self.env.step(command)
            self.state, self.steps = result.state, self.steps + 1
            self.success = result.success
            self.over = result.success or result.truncated


def _replay_commands(env: Env, sim: Simulator, demonstrations: Sequence[Demonstration]) -> CeilingRow:
    row = CeilingRow(COMMANDS)
    for item in demonstrations:
        replay = _Replay(env, _start(env, sim, item.episode))
        replay.play(item.sent)
        row.tasks.setdefault(item.episode.task, []).append(replay.success)
        row.steps.append(replay.steps)
    return row


def _replay_texts(env: Env, sim: Simulator, demonstrations: Sequence[Demonstration], action: ActionText) -> CeilingRow:
    row, dropped = CeilingRow(f"{action.config.codec}, {action.config.motion}"), Counter[str]()
    for item in demonstrations:
        replay = _Replay(env, _start(env, sim, item.episode))
        opening: float | None = None
        for states, commands in item.clips():
            written = action.write(states, commands)
            motion = action.read(written.text).motion
            assert motion is not None, f"{action.config.codec} does not read its own text: {written.text[:200]}"
            row.chars.append(len(written.text))
            row.rows.append(len(motion))
            dropped.update(written.dropped)
            replay.play(action.play(motion, replay.state, opening))
            opening = float(motion.open_R[-1])
        if opening is not None:
            still = Motion.of(np.zeros((AFTER, 3)), np.full(AFTER, opening))
            replay.play(action.play(still, replay.state, opening))
        row.tasks.setdefault(item.episode.task, []).append(replay.success)
        row.steps.append(replay.steps)
    row.dropped = dict(dropped)
    return row
