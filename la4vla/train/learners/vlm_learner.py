"""The learner of a model that writes: conversations in, cross-entropy over the tokens of their answers out.

Any family of la4vla/vlm/model.py, trained whole or by adapters. Its encoder (tokenizer, chat template, image processor)
belongs to the weights: it lies in every checkpoint, and a run that goes on takes it from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from la4vla import manifest
from la4vla.action_text.action_text import ActionText
from la4vla.config import LORA, TrainConfig
from la4vla.data.explain import explain
from la4vla.data.loader import Loader
from la4vla.data.reader import StepData
from la4vla.data.setup import Setup, fingerprints, prepare_texts
from la4vla.manifest import Checkpoint
from la4vla.model import lora
from la4vla.model.freeze import set_trainable, summary_table
from la4vla.train import checkpoint
from la4vla.train.checkpoint import Identity
from la4vla.train.dist import World
from la4vla.train.engines.engine import Engine
from la4vla.train.learners import adapting, texts
from la4vla.train.metrics import Record
from la4vla.train.resume import Resume
from la4vla.train.run_folder import write_first_batch
from la4vla.types import Embodiment, TextBatch, UserError
from la4vla.vlm.flops import text_step
from la4vla.vlm.generate import Writing, write
from la4vla.vlm.load import PRESETS, build_vlm, load_encoder, load_vlm
from la4vla.vlm.model import VlmModel, rebuild
from la4vla.vlm.rare_tokens import with_tokens
from la4vla.vlm.rows import ChatEncoder
from la4vla.vlm.stored import rebuild_adapted

FIRST_IMAGES = 32  # on the sheet of the first batch
LONGEST_ANSWER = 256  # tokens of an answer that validation writes
KINDS = ("text",)


class VlmLearner:
    """Raises UserError where the data or the weights do not fit the config or the checkpoint that the run goes on
    from."""

    def __init__(self, config: TrainConfig, resume: Resume, world: World) -> None:
        self._config, self._world = config, world
        _check_source(config, resume.checkpoint)
        self._adapted = adapting.find_base(config, resume, world)
        encoder = self._find_encoder(resume.checkpoint)
        setup = prepare_texts(config, encoder)
        self._robot = _robot(setup)
        self._codec = texts.codec_of(setup.texts)
        if self._codec and self._robot:
            # A codec's rare tokens get their names in the tokenizer before a row is made.
            encoder = with_tokens(encoder, ActionText.from_dict(self._codec, self._robot).tokens)
        self._encoder, self._setup = encoder, Setup({}, setup.texts, None, encoder)
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
        config = self._config
        vlm = self._loaded(resume).train()
        set_trainable(vlm, config.stages[resume.position.stage].train)
        if config.engine.compute == "frozen_bf16":
            adapting.hold_frozen_in_bf16(vlm, adapting.held(vlm, config, self._adapted))
        if config.engine.gradient_checkpointing:
            vlm.enable_gradient_checkpointing()
        return vlm

    def identity(self, module: VlmModel) -> Identity:
        return Identity(
            learner="vlm",
            model={**module.description, "lora": lora.description(self._config.model.lora)},
            base=self._adapted.base.to_dict() if self._adapted else {},
            held=adapting.held(module, self._config, self._adapted),
            input_spec={},
            transforms=[],
            embodiment=self._robot.to_dict() if self._robot else {},
            views=[],
            view_sizes={},
            text={"codec": self._codec, "max_tokens": self._encoder.max_tokens},
            sources=fingerprints(self._setup),
            tokenizer=self._encoder.files(),
        )

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
        told = "".join(texts.as_told(batch, self._encoder.tokenizer.decode) for batch in batches)
        (folder / manifest.FIRST_TEXTS).write_text(told)

    def validate(self, module: VlmModel, engine: Engine) -> Record:
        """`val/text` (cross-entropy of an answer token) and `val/exact` (answers written to the letter, upper and lower
        case alike), over all held-out rows and by question type."""
        if self._held_out is None:
            return {}
        return self._held_out.losses(module, engine) | self._exact(module)

    def flops(self, module: VlmModel, step: StepData) -> float:
        """Recomputation of checkpointed blocks is not counted: it is no progress."""
        trained = self._config.stages[step.stage].train
        reached = {*trained, *(self._config.model.lora.targets if LORA in trained else ())}
        return sum(text_step(module, batch, reached) for batch in step.batches if isinstance(batch, TextBatch))

    def close(self) -> None:
        self._loader.close()

    def _exact(self, module: VlmModel) -> Record:
        assert self._held_out is not None
        rows, training, size = self._held_out.rows, module.training, self._held_out.rows_at_once
        module.eval()
        prompts = [self._encoder.question(row) for row in rows]
        mixed = self._config.engine.precision == "bf16"
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=mixed):
            answers = write(module, self._encoder, prompts, Writing(LONGEST_ANSWER), rows_at_once=size)
        module.train(training)
        right: dict[str, list[bool]] = {}
        for row, answer in zip(rows, answers, strict=True):
            right.setdefault(row.question, []).append(answer.text.lower() == row.answer.strip().lower())
        every = [hit for hits in right.values() for hit in hits]
        by_question = {f"val/exact/{question}": sum(hits) / len(hits) for question, hits in sorted(right.items())}
        return {"val/exact": sum(every) / len(every), **by_question}

    def _find_encoder(self, source: Checkpoint | None) -> ChatEncoder:
        model = self._config.model
        if source is not None:
            written = source.manifest
            return ChatEncoder.load(source.folder / manifest.TOKENIZER, written.text["max_tokens"])
        if model.weights:
            return load_encoder(model.weights, model.max_tokens)
        return PRESETS[model.preset][1]()

    def _loaded(self, resume: Resume) -> VlmModel:
        model, seed, source = self._config.model, self._config.run.seed, resume.checkpoint
        if self._adapted is not None:
            described = self._base_description(source)
            vlm = rebuild_adapted(described, self._adapted.folder, seed)
            if source is not None and source.manifest.base:
                checkpoint.load_weights(vlm, source.folder, resume.own, vlm.from_base)
            return vlm
        if source is not None:
            vlm = rebuild(source.manifest.model)
            checkpoint.load_weights(vlm, source.folder, resume.own)
            return vlm
        if model.weights:
            return load_vlm(model.weights, model.max_tokens, model.attention)[0]
        return build_vlm(model.preset, seed, model.attention)[0]

    def _base_description(self, source: Checkpoint | None) -> dict[str, Any]:
        """Of a model with this run's adapters. A public base's own config says the rest."""
        model = self._config.model
        described = source.manifest.model if source else {"max_tokens": model.max_tokens, "attention": model.attention}
        return {**described, "lora": lora.description(model.lora)}


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


def _check_source(config: TrainConfig, source: Checkpoint | None) -> None:
    model = config.model
    if source is not None and source.manifest.learner != "vlm":
        raise UserError(f"{source.folder} is a policy, and learner is vlm; give a model that writes.")
    if source is None and not model.weights and model.preset not in PRESETS:
        raise UserError(
            f"model.preset is {model.preset}, which cannot write; set model.preset={next(iter(PRESETS))}, or "
            "model.weights to a model of transformers."
        )
