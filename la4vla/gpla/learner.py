"""The learner of the rounds: it makes its own steps, out of what the very model that is training writes.

    round k   before its first step: prompts -> sentences -> chunks -> scores -> candidates/round_0000k.jsonl
    step      this rank's pairs of the round as micro-batches, and with `supervised_and_preference` the clips' own
              sentences as others before them

The loop, optimizer, checkpoints and resume are those of every run; all rounds are one stage, so optimizer and step
count go on. Every rank samples its share of the prompts; rank 0 writes the file. A run that is killed inside a round
goes on with the file of that round, whose weights its checkpoint names; one that is killed before samples the same
candidates again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from la4vla import manifest
from la4vla.config import GplaConfig, TrainConfig
from la4vla.data.mixture import Schedule
from la4vla.data.reader import StepData
from la4vla.data.setup import Setup
from la4vla.data.shards.index import read_index
from la4vla.files import write_atomic
from la4vla.gpla.candidates import CandidateMaker, JudgedPrompt, from_jsonl, to_jsonl
from la4vla.gpla.prompts import ClipStart, ClipStarts
from la4vla.levels import Levels
from la4vla.model.freeze import summary_table
from la4vla.rng import RngUse, generator
from la4vla.serve.policy import ServedPolicy
from la4vla.train import disk
from la4vla.train.checkpoint import Identity
from la4vla.train.dist import World, gathered, log0, on_main
from la4vla.train.engines.engine import Engine
from la4vla.train.learners import texts
from la4vla.train.learners.vlm_source import VlmSource
from la4vla.train.metrics import Record
from la4vla.train.resume import Resume
from la4vla.train.run_folder import write_first_batch
from la4vla.types import Embodiment, Scorer, TextRow, Turn, UserError
from la4vla.vlm.model import VlmModel
from la4vla.vlm.preference import EncodedPair, PreferenceBatch, batch_pairs
from la4vla.vlm.rows import EncodedText, answered

CANDIDATES = "candidates"
ROUND, SETTINGS = "round", "candidates"
"""What a checkpoint says beside how its model writes: number and weights of the present round; _settings."""

MAY_CHANGE = ("clips", "rows_at_once")
"""Settings of candidates that a run that goes on may change: where the clips lie (their fingerprint stays), memory."""

OF_NAMES = {"clips": "folder of clips", "low": "low-level policy", "scorer": "scorer"}
FIRST_IMAGES = 32  # on the sheet of the first batch


@dataclass(frozen=True)
class Partners:
    """Who does not train.

    low              the policy that acts, on this rank's device
    levels           of language that it was told
    scorer           who judges, in eval mode
    scorer_identity  what tells it from others: sha256 of its weights, or its name
    """

    low: ServedPolicy
    levels: Levels
    scorer: Scorer
    scorer_identity: str


def round_file(run_dir: str | Path, number: int) -> Path:
    return Path(run_dir) / CANDIDATES / f"round_{number:05d}.jsonl"


class RoundsLearner:
    """Raises UserError where clips, policies or the settings do not fit, or are not those that the run began with."""

    def __init__(self, gpla: GplaConfig, partners: Partners, config: TrainConfig, resume: Resume, world: World) -> None:
        """config: rounds.training(gpla)."""
        self._gpla, self._config, self._world = gpla, config, world
        if gpla.prefer.global_batch % world.size:
            raise UserError(
                f"prefer.global_batch is {gpla.prefer.global_batch}, which {world.size} ranks cannot share; use a "
                "number of ranks that divides it."
            )
        low = partners.low
        self._source = VlmSource(config, resume, world)
        asked = gpla.candidates
        shown = tuple(asked.views) or tuple(read_index(asked.clips).views)
        read = dict.fromkeys((*shown, *low.views, *((asked.view,) if asked.view else ())))
        self._starts = ClipStarts(asked.clips, tuple(read), gpla.seed)
        if differs := low.embodiment.difference(self._starts.index.embodiment):
            raise UserError(
                f"candidates.clips are of another robot than the low-level policy's ({differs.field} is "
                f"{differs.other}, the policy's is {differs.mine}); name clips like those it was trained on."
            )
        mixed = config.engine.precision == "bf16"
        self._maker = CandidateMaker(asked, gpla.seed, shown, low, partners.levels, partners.scorer, mixed)
        self._names = {"clips": self._starts.fingerprint, "low": low.identity, "scorer": partners.scorer_identity}
        self._scorer_name = partners.scorer.name
        self._resume, self._inherited = resume, resume.checkpoint.manifest if resume.checkpoint else None
        self._schedule, self._stage = Schedule(config), next(iter(config.stages))
        self._prompts = gpla.prefer.prompts or gpla.prefer.steps * gpla.prefer.global_batch
        self._round: dict[str, Any] = self._inherited.text[ROUND] if resume.own and self._inherited else {}
        self._check_unchanged()
        self._module: VlmModel | None = None
        self._held_out = None
        if config.validate.texts:
            nothing = Setup({}, {}, {}, self._source.encoder)
            self._held_out = texts.HeldOutTexts(config, nothing, self._source.encoder, world)

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("text", "preference") if self._supervised else ("preference",)

    def build(self, resume: Resume) -> VlmModel:
        """Load, then freeze."""
        self._module = self._source.build(resume)
        return self._module

    def identity(self, module: VlmModel) -> Identity:
        assert self._inherited is not None, "the rounds begin with a checkpoint of the high-level model"
        known = self._inherited.trained_robots
        robot = Embodiment.from_dict(known[0].embodiment) if known else None
        text = {**self._inherited.text, SETTINGS: self._settings(), ROUND: self._round}
        return self._source.identity(module, robot, text, self._names)

    def trainable_table(self, module: VlmModel) -> str:
        return summary_table(module)

    def explain(self) -> str:
        prefer, asked = self._gpla.prefer, self._gpla.candidates
        passes = prefer.rounds * self._prompts / self._starts.index.clips
        return (
            f"{prefer.rounds} rounds of {prefer.steps} steps; a round: {self._prompts} prompts of {asked.count} "
            f"sentences each\n{self._starts.index.clips:,} clips in {asked.clips}, {passes:.2f} passes; judged by "
            f"{self._scorer_name}"
        )

    def shared_by_ranks(self) -> dict[str, Any]:
        return {"clips, low-level policy or scorer": self._names}

    def steps(self) -> Iterator[StepData]:
        """Begins by removing the candidates of rounds that the run has yet to come to."""
        steps, at = self._gpla.prefer.steps, self._resume.position.stage_step
        on_main(self._world, lambda: self._cut_back(at // steps))
        rows: list[JudgedPrompt] = []
        starts: dict[str, ClipStart] = {}
        present = -1
        for draw in self._schedule.draws(self._stage, at):
            began = time.perf_counter()
            number, within = divmod(draw.stage_step, steps)
            if number != present:
                present, found = number, self._starts.read(number * self._prompts, self._prompts)
                rows = self._candidates(number, within, found)
                starts = {start.key: start for start in found}
            batches = self._batches(number, within, rows, starts)
            samples = {name: count for name, (_, count) in draw.takes.items()}
            wait_s = time.perf_counter() - began
            yield StepData(draw.stage, draw.stage_step, draw.step, batches, samples, 0, wait_s)

    def ready(self, step: StepData, module: VlmModel, engine: Engine) -> StepData:
        return step

    def write_first_batch(self, step: StepData, folder: Path) -> None:
        """The first pairs that this rank learns from, with their images."""
        pairs = [batch for batch in step.batches if isinstance(batch, PreferenceBatch)]
        keys = [key.split("/", 2)[2] for batch in pairs for key in batch.keys][:FIRST_IMAGES]
        starts = {start.key: start for start in self._starts.read(0, self._prompts)}
        view = self._maker.scorer_view
        images = [torch.from_numpy(starts[key].images([view])[view]).permute(2, 0, 1) for key in keys]
        write_first_batch(images, folder)
        told = "".join(texts.as_told(batch.texts, self._source.encoder.tokenizer.decode) for batch in pairs)
        (folder / manifest.FIRST_TEXTS).write_text(told)

    def validate(self, module: VlmModel, engine: Engine) -> Record:
        return self._source.validate(module, engine, self._held_out, self._world.device)

    def flops(self, module: VlmModel, step: StepData) -> float:
        """Of learning alone: sampling is counted as waiting for data."""
        return self._source.flops(module, step.stage, step.batches)

    def close(self) -> None:
        """Does nothing: no process reads ahead."""

    @property
    def _supervised(self) -> bool:
        return self._gpla.prefer.objective == "supervised_and_preference"

    def _settings(self) -> dict[str, Any]:
        """What the candidates of a round depend on besides weights, data and policies."""
        asked, prefer = asdict(self._gpla.candidates), self._gpla.prefer
        fixed = {name: value for name, value in asked.items() if name not in MAY_CHANGE}
        return {**fixed, "seed": self._gpla.seed, "steps": prefer.steps, "prompts": prefer.prompts}

    def _check_unchanged(self) -> None:
        """Raises UserError where a run would go on otherwise than it began."""
        if not (self._resume.own and self._inherited):
            return
        for name, then in self._inherited.sources.items():
            if self._names[name] != then:
                raise UserError(
                    f"{self._config.run.dir} began with another {OF_NAMES[name]}; bring that one back, or set `dir` to "
                    "a new folder."
                )
        for name, then in self._inherited.text[SETTINGS].items():
            if self._settings()[name] != then:
                raise UserError(
                    f"`{name}` is {self._settings()[name]}, the rounds in {self._config.run.dir} began with {then}; "
                    "set it back, or set `dir` to a new folder."
                )

    def _cut_back(self, first: int) -> None:
        """Removes the files of rounds behind `first`."""
        for path in sorted(round_file(self._config.run.dir, 0).parent.glob("round_*.jsonl")):
            if int(path.stem.removeprefix("round_")) > first:
                path.unlink()

    def _candidates(self, number: int, within: int, starts: Sequence[ClipStart]) -> list[JudgedPrompt]:
        """The rows of a round on every rank. within: finished steps of it. Collective."""
        module, path = self._module, round_file(self._config.run.dir, number)
        assert module is not None, "the module is built before the first step"
        weights = self._round.get("weights", "") if within else on_main(self._world, lambda: self._digest(module))
        rows = on_main(self._world, lambda: _stored(path, weights, starts))
        if rows is None:
            if within:
                raise UserError(
                    f"{path} is gone, and the run stands inside its round; bring it back, or start again in a new "
                    "`dir`."
                )
            rows = self._sampled(module, number, weights, starts)
            _check_choice(rows, number)
            on_main(self._world, lambda: self._store(path, rows))
        self._round = {"number": number, "weights": weights}
        log0(self._world, _summary(number, rows))
        return rows

    def _sampled(self, module: VlmModel, number: int, weights: str, starts: Sequence[ClipStart]) -> list[JudgedPrompt]:
        """Every rank's share, on every rank and in the order of the prompts. Collective."""
        rank, size = self._world.rank, self._world.size
        mine = self._maker.make(module, self._source.encoder, starts[rank::size], number, weights)
        shares = gathered(mine)
        return [shares[place % size][place // size] for place in range(len(starts))]

    def _store(self, path: Path, rows: Sequence[JudgedPrompt]) -> None:
        with disk.guarded(path, "the candidates of a round"):
            write_atomic(path, to_jsonl(rows))

    def _batches(
        self, number: int, within: int, rows: Sequence[JudgedPrompt], starts: dict[str, ClipStart]
    ) -> tuple[Any, ...]:
        """This rank's micro-batches of a step: conversations first, in the order of `kinds`."""
        count, size = self._gpla.prefer.global_batch, self._gpla.prefer.micro_batch
        places = [self._place(number, within * count + item) for item in range(count)]
        mine = [rows[place] for place in places[self._world.rank :: self._world.size]]
        parts = [mine[first : first + size] for first in range(0, len(mine), size)]
        encoder = self._source.encoder
        pairs = [batch_pairs([self._pair(starts[row.key], row) for row in part], encoder) for part in parts]
        if not self._supervised:
            return tuple(pairs)
        told = [encoder.batch([self._told(starts[row.key], row) for row in part]) for part in parts]
        return (*told, *pairs)

    def _place(self, number: int, position: int) -> int:
        """Row of the round that its position-th pair is: each once a pass, in an order of the pass's own."""
        turn, place = divmod(position, self._prompts)
        return int(generator(self._gpla.seed, RngUse.PAIRS, number, turn).permutation(self._prompts)[place])

    def _pair(self, start: ClipStart, row: JudgedPrompt) -> EncodedPair:
        """One that is left out keeps its place, with sentences that do not matter."""
        prompt = self._maker.prompt(start, row.round, self._source.encoder)
        if row.chosen is None or row.rejected is None:
            stand_in = answered(prompt, row.candidates[0].ids)
            return EncodedPair(stand_in, stand_in, False)
        chosen, rejected = (answered(prompt, row.candidates[place].ids) for place in (row.chosen, row.rejected))
        return EncodedPair(chosen, rejected, True)

    def _told(self, start: ClipStart, row: JudgedPrompt) -> EncodedText:
        """The clip's own sentence as an answer. Raises UserError where it is empty."""
        asked, shown = self._maker.conversation(start)
        key = f"{row.round}/{start.key}"
        return self._source.encoder.prepare(
            TextRow(key, (*asked, Turn("assistant", start.instruction)), shown, self._gpla.candidates.question)
        )

    def _digest(self, module: VlmModel) -> str:
        """sha256 hex of the weights that train, and of what identifies the others; what a round's candidates are of."""
        digest = hashlib.sha256(json.dumps(self._source.base).encode())
        for name, parameter in sorted(module.named_parameters()):
            if parameter.requires_grad:
                digest.update(name.encode())
                digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _stored(path: Path, weights: str, starts: Sequence[ClipStart]) -> list[JudgedPrompt] | None:
    """The rows of a file; None where there is none. Raises UserError for those of other weights or prompts."""
    if not path.is_file():
        return None
    rows = from_jsonl(path.read_bytes(), str(path))
    if [row.key for row in rows] != [start.key for start in starts]:
        raise UserError(f"{path} answers other prompts than this round's; remove it, and the round is sampled again.")
    if odd := {row.weights for row in rows} - {weights}:
        raise UserError(
            f"{path} holds candidates of another model than is being trained (weights {min(odd)[:12]}, not "
            f"{weights[:12]}); remove it, and the round is sampled again."
        )
    return rows


def _check_choice(rows: Sequence[JudgedPrompt], number: int) -> None:
    """Raises UserError where the first round has nothing to choose from."""
    if number == 0 and all(row.left_out == "same" for row in rows):
        raise UserError(
            f"all {len(rows)} prompts of the first round got the same sentence {len(rows[0].candidates)} times, so "
            "there is nothing to prefer; raise candidates.temperature, top_p or count."
        )


def _summary(number: int, rows: Sequence[JudgedPrompt]) -> str:
    pairs = [row for row in rows if not row.left_out]
    scores = [item.score for row in rows for item in row.candidates if item.score is not None]
    left = {why: sum(row.left_out == why for row in rows) for why in sorted({row.left_out for row in rows} - {""})}
    words = ", ".join(f"{count} {why}" for why, count in left.items()) or "none"
    mean = sum(scores) / len(scores) if scores else float("nan")
    return f"round {number}: {len(pairs)} of {len(rows)} pairs count (left out: {words}), mean score {mean:.4f}"
