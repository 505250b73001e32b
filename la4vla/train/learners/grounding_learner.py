"""The learner of the grounding model: pairs of a motion and its sentence in, the contrastive loss of their groups out.

Its encoder of sentences and the statistics of its actions belong to the weights: they lie in every checkpoint, and a
run that goes on takes them from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from la4vla import manifest
from la4vla.config import TrainConfig
from la4vla.data.explain import explain
from la4vla.data.loader import Loader
from la4vla.data.reader import StepData
from la4vla.data.setup import fingerprints, prepare_pairs
from la4vla.data.transforms import chain_to_dicts
from la4vla.grounding.model import GroundingModel, build_grounding, rebuild
from la4vla.grounding.sentences import SentenceEncoder
from la4vla.grounding.towers import Towers, build_towers, load_towers
from la4vla.manifest import Checkpoint
from la4vla.model.freeze import set_trainable, summary_table
from la4vla.train import checkpoint
from la4vla.train.checkpoint import Identity
from la4vla.train.dist import World
from la4vla.train.engines.engine import Engine
from la4vla.train.learners.grad_cache import with_gradients
from la4vla.train.learners.held_out_pairs import HeldOutPairs
from la4vla.train.metrics import Record
from la4vla.train.resume import Resume
from la4vla.train.run_folder import write_first_batch
from la4vla.types import ContrastBatch, UserError

KINDS = ("contrast",)
FIRST_IMAGES = 32  # on the sheet of the first batch


class GroundingLearner:
    """Raises UserError where the data or the weights do not fit the config or the checkpoint that the run goes on
    from."""

    def __init__(self, config: TrainConfig, resume: Resume, world: World) -> None:
        self._config, self._world = config, world
        source = resume.checkpoint
        _check_source(config, source)
        self._towers, self._encoder, image_size = self._find_towers(source)
        encode, length = self._encoder.encode, self._encoder.length
        self._setup = prepare_pairs(config, image_size, encode, length, source, resume.own)
        where = (resume.position.stage, resume.position.stage_step)
        self._loader = Loader(config, self._setup, world.rank, world.size, where)
        if resume.own:
            assert source is not None
            checkpoint.check_data(source, fingerprints(self._setup))
        self._held_out = HeldOutPairs(config, self._setup, world) if config.validate.pairs else None

    @property
    def kinds(self) -> tuple[str, ...]:
        return KINDS

    def build(self, resume: Resume) -> GroundingModel:
        """Load, then freeze."""
        module = self._loaded(resume).train()
        set_trainable(module, self._config.stages[resume.position.stage].train)
        return module

    def identity(self, module: GroundingModel) -> Identity:
        return Identity(
            learner="grounding",
            model=module.description,
            base={},
            held=tuple(module.state_dict()),
            input_spec=asdict(self._setup.only_robot.processor.spec),
            robots=self._setup.trained_robots,
            text={},
            sources=fingerprints(self._setup),
            tokenizer=self._encoder.files(),
        )

    def trainable_table(self, module: GroundingModel) -> str:
        return summary_table(module)

    def explain(self) -> str:
        robot, horizon = self._setup.only_robot, self._config.grounding.horizon
        body, views = robot.embodiment, robot.chain.views
        told = [
            explain(self._config, self._setup, self._world.size),
            f"embodiment {body.name}: chunks of {horizon} actions {' '.join(body.action.names)}, "
            + (f"seen in view {views[0]}" if views else "the scene is not shown"),
        ]
        if self._held_out is not None:
            told.append(f"held-out groups of {self._held_out.size}; by chance {1 / self._held_out.size:.3f} are right")
        return "\n".join(told)

    def shared_by_ranks(self) -> dict[str, Any]:
        return {
            "shards": fingerprints(self._setup),
            "statistics of the data": chain_to_dicts(self._setup.only_robot.chain),
        }

    def steps(self) -> Iterator[StepData]:
        return iter(self._loader)

    def ready(self, step: StepData, module: GroundingModel, engine: Engine) -> StepData:
        pairs = [batch for batch in step.batches if isinstance(batch, ContrastBatch)]
        diversity = self._config.grounding.diversity
        return replace(step, batches=with_gradients(pairs, module, engine, diversity, self._world))

    def write_first_batch(self, step: StepData, folder: Path) -> None:
        """The first scenes that this rank trains on, and the first sentences."""
        pairs = [batch for batch in step.batches if isinstance(batch, ContrastBatch)]
        images = [image for batch in pairs if batch.images_BCHW is not None for image in batch.images_BCHW]
        write_first_batch(images[:FIRST_IMAGES], folder)
        told = [
            f"group {batch.group} of {batch.source}, {key}: {self._encoder.decode(ids_L)}"
            for batch in pairs
            for key, ids_L in zip(batch.keys, batch.input_ids_BL.tolist(), strict=True)
        ]
        (folder / manifest.FIRST_TEXTS).write_text("\n".join(told) + "\n")

    def validate(self, module: GroundingModel, engine: Engine) -> Record:
        return self._held_out.measure(module, engine) if self._held_out is not None else {}

    def flops(self, module: GroundingModel, step: StepData) -> float:
        """The first of a step's two passes is not counted: it is no progress."""
        rows = sum(batch.rows for batch in step.batches)
        return rows * module.flops(self._config.stages[step.stage].train)

    def close(self) -> None:
        self._loader.close()

    def _find_towers(self, source: Checkpoint | None) -> tuple[Towers | None, SentenceEncoder, int]:
        """The towers that a run begins with (None: those of its checkpoint), their encoder, and the images' size."""
        model, vision = self._config.model, self._config.grounding.vision
        if source is not None:
            made = source.manifest
            encoder = SentenceEncoder.load(source.folder / manifest.TOKENIZER, made.input_spec["max_tokens"])
            return None, encoder, made.input_spec["image_size"]
        if model.weights:
            towers = load_towers(model.weights, vision)
        else:
            towers = build_towers(model.preset, vision, self._config.run.seed)
        return towers, towers.encoder, towers.image_size

    def _loaded(self, resume: Resume) -> GroundingModel:
        source, asked = resume.checkpoint, self._config.grounding
        if source is None:
            assert self._towers is not None
            width = len(self._setup.only_robot.embodiment.action.names)
            return build_grounding(self._towers, asked.dim, asked.horizon, width, self._config.run.seed)
        module = rebuild(source.manifest.model, self._encoder)
        checkpoint.load_weights(module, source.folder, resume.own)
        return module


def _check_source(config: TrainConfig, source: Checkpoint | None) -> None:
    if source is None:
        return
    made = source.manifest
    if made.learner != "grounding":
        raise UserError(f"{source.folder} is of learner {made.learner}, not a grounding model; give one, or none.")
    then = {"vision": made.model["vision"] is not None, "horizon": made.model["horizon"], "dim": made.model["dim"]}
    for key, value in then.items():
        if asdict(config.grounding)[key] != value:
            raise UserError(
                f"{source.folder} is of another model than grounding.{key}={asdict(config.grounding)[key]}; set "
                f"grounding.{key}={str(value).lower()}, with which it was trained."
            )
