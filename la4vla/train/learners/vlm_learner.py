"""The learner of a model that writes: conversations in, cross-entropy over the tokens of their answers out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from la4vla import manifest
from la4vla.action_text.action_text import ActionText
from la4vla.config import TrainConfig
from la4vla.data.explain import explain
from la4vla.data.loader import Loader
from la4vla.data.reader import StepData
from la4vla.data.setup import Setup, fingerprints, prepare_texts
from la4vla.model.freeze import summary_table
from la4vla.train import checkpoint
from la4vla.train.checkpoint import Identity
from la4vla.train.dist import World
from la4vla.train.engines.engine import Engine
from la4vla.train.learners import texts
from la4vla.train.learners.vlm_source import VlmSource
from la4vla.train.metrics import Record
from la4vla.train.resume import Resume
from la4vla.train.run_folder import write_first_batch
from la4vla.types import Embodiment, TextBatch, UserError
from la4vla.vlm.model import VlmModel
from la4vla.vlm.rare_tokens import with_tokens

FIRST_IMAGES = 32  # on the sheet of the first batch
KINDS = ("text",)


class VlmLearner:
    """Raises UserError where the data or the weights do not fit the config or the checkpoint that the run goes on
    from."""

    def __init__(self, config: TrainConfig, resume: Resume, world: World) -> None:
        self._config, self._world = config, world
        self._source = VlmSource(config, resume, world)
        encoder = self._source.encoder
        before = resume.checkpoint.manifest.text if resume.checkpoint else {}
        self._asked_before: list[str] = before.get("questions", [])
        setup = prepare_texts(config, encoder)
        self._robot = _robot(setup)
        self._codec = texts.codec_of(setup.texts)
        if self._codec and self._robot:
            # A codec's rare tokens get their names in the tokenizer before a row is made.
            encoder = with_tokens(encoder, ActionText.from_dict(self._codec, self._robot).tokens)
            self._source.encoder = encoder
        self._setup = Setup({}, setup.texts, {}, encoder)
        where = (resume.position.stage, resume.position.stage_step)
        self._loader = Loader(config, self._setup, world.rank, world.size, where)
        if resume.own:
            assert resume.checkpoint is not None
            checkpoint.check_data(resume.checkpoint, fingerprints(self._setup))
        self._held_out = None
        if config.validate.texts:
            self._held_out = texts.HeldOutTexts(config, self._setup, encoder, world)

    @property
    def kinds(self) -> tuple[str, ...]:
        return KINDS

    def build(self, resume: Resume) -> VlmModel:
        """Load, then freeze."""
        return self._source.build(resume)

    def identity(self, module: VlmModel) -> Identity:
        text = {
            "codec": self._codec,
            "questions": sorted({*texts.questions_of(self._setup.texts), *self._asked_before}),
        }
        return self._source.identity(module, self._robot, text, fingerprints(self._setup))

    def trainable_table(self, module: VlmModel) -> str:
        return summary_table(module)

    def explain(self) -> str:
        robot = f"texts of {self._robot.name}" if self._robot else "texts of no robot"
        codec = f"actions as `{self._codec['codec']}`" if self._codec else "no actions among them that say their codec"
        return f"{explain(self._config, self._setup, self._world.size)}\n{robot}, {codec}"

    def shared_by_ranks(self) -> dict[str, Any]:
        return {"shards": fingerprints(self._setup)}

    def steps(self) -> Iterator[StepData]:
        return iter(self._loader)

    def ready(self, step: StepData, module: VlmModel, engine: Engine) -> StepData:
        return step

    def write_first_batch(self, step: StepData, folder: Path) -> None:
        """The first images that this rank trains on as they are stored, and the conversations as they are learned."""
        batches = [batch for batch in step.batches if isinstance(batch, TextBatch)]
        write_first_batch(texts.first_images(self._setup, batches, FIRST_IMAGES), folder)
        told = "".join(texts.as_told(batch, self._source.encoder.tokenizer.decode) for batch in batches)
        (folder / manifest.FIRST_TEXTS).write_text(told)

    def validate(self, module: VlmModel, engine: Engine) -> Record:
        return self._source.validate(module, engine, self._held_out, self._world.device)

    def flops(self, module: VlmModel, step: StepData) -> float:
        return self._source.flops(module, step.stage, step.batches)

    def close(self) -> None:
        self._loader.close()


def _robot(setup: Setup) -> Embodiment | None:
    """Of the texts that are of one. Raises UserError where they are of two: one codec cannot be played by both."""
    robots = {name: source.index.robot for name, source in setup.texts.items() if source.index.robot}
    (first, one), *others = list(robots.items()) or [("", None)]
    for name, robot in others:
        if one and robot and (differs := one.difference(robot)):
            raise UserError(
                f"sources {first} and {name} are of different robots ({differs.field} differs); train them apart, or "
                "write one of them without `actions` and without its robot."
            )
    return one
