"""Where a run's model that writes comes from, and what its checkpoints say: shared by the learners of such models.

Any family of la4vla/vlm/model.py, trained whole or by adapters. Its encoder (tokenizer, chat template, image processor)
belongs to the weights: it lies in every checkpoint, and a run that goes on takes it from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from la4vla import manifest
from la4vla.config import LORA, TrainConfig
from la4vla.manifest import Checkpoint, TrainedRobot
from la4vla.model import lora
from la4vla.model.freeze import set_trainable
from la4vla.train import checkpoint
from la4vla.train.checkpoint import Identity
from la4vla.train.dist import World
from la4vla.train.engines.engine import Engine
from la4vla.train.learners import adapting, texts
from la4vla.train.metrics import Record
from la4vla.train.resume import Resume
from la4vla.types import Embodiment, TextBatch, UserError
from la4vla.vlm.flops import text_step
from la4vla.vlm.generate import Writing, write
from la4vla.vlm.load import PRESETS, build_vlm, load_encoder, load_vlm
from la4vla.vlm.model import VlmModel, rebuild
from la4vla.vlm.preference import PreferenceBatch
from la4vla.vlm.rows import ChatEncoder
from la4vla.vlm.stored import rebuild_adapted

LONGEST_ANSWER = 256  # tokens of an answer that validation writes


class VlmSource:
    """Raises UserError where the weights do not fit the config.

    encoder  of the weights; a learner may put one in its place that knows more tokens
    """

    def __init__(self, config: TrainConfig, resume: Resume, world: World) -> None:
        self._config = config
        _check_source(config, resume.checkpoint)
        self._adapted = adapting.find_base(config, resume, world)
        self.encoder = self._find_encoder(resume.checkpoint)

    @property
    def base(self) -> dict[str, Any]:
        """What identifies the weights that adapters belong to; empty without adapters."""
        return self._adapted.base.to_dict() if self._adapted else {}

    def build(self, resume: Resume) -> VlmModel:
        """Load, then freeze."""
        config = self._config
        vlm = self._loaded(resume).train()
        vlm.preference = config.preference
        set_trainable(vlm, config.stages[resume.position.stage].train)
        if config.engine.compute == "frozen_bf16":
            adapting.hold_frozen_in_bf16(vlm, adapting.held(vlm, config, self._adapted))
        if config.engine.gradient_checkpointing:
            vlm.enable_gradient_checkpointing()
        return vlm

    def identity(
        self, module: VlmModel, robot: Embodiment | None, text: Mapping[str, Any], sources: Mapping[str, str]
    ) -> Identity:
        """text: what it writes, besides the longest row. sources: name -> fingerprint."""
        return Identity(
            learner="vlm",
            model={**module.description, "lora": lora.description(self._config.model.lora)},
            base=self.base,
            held=adapting.held(module, self._config, self._adapted),
            input_spec={},
            robots=(TrainedRobot(robot.to_dict(), [], [], {}),) if robot else (),
            text={**text, "max_tokens": self.encoder.max_tokens},
            sources=dict(sources),
            tokenizer=self.encoder.files(),
        )

    def flops(self, module: VlmModel, stage: str, batches: Sequence[Any]) -> float:
        """Recomputation of checkpointed blocks is not counted: it is no progress."""
        trained = self._config.stages[stage].train
        reached = {*trained, *(self._config.model.lora.targets if LORA in trained else ())}
        rows = [batch.texts if isinstance(batch, PreferenceBatch) else batch for batch in batches]
        return sum(text_step(module, batch, reached) for batch in rows if isinstance(batch, TextBatch))

    def validate(
        self, module: VlmModel, engine: Engine, held_out: texts.HeldOutTexts | None, device: torch.device
    ) -> Record:
        """`val/text` (cross-entropy of an answer token) and `val/exact` (answers written to the letter, upper and lower
        case alike), over all held-out rows and by question type; nothing without any."""
        if held_out is None:
            return {}
        return held_out.losses(module, engine) | self._exact(module, held_out, device)

    def _exact(self, module: VlmModel, held_out: texts.HeldOutTexts, device: torch.device) -> Record:
        rows, training, size = held_out.rows, module.training, held_out.rows_at_once
        module.eval()
        prompts = [self.encoder.question(row) for row in rows]
        mixed = self._config.engine.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            answers = write(module, self.encoder, prompts, Writing(LONGEST_ANSWER), rows_at_once=size)
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


def _check_source(config: TrainConfig, source: Checkpoint | None) -> None:
    model = config.model
    if source is not None and source.manifest.learner != "vlm":
        raise UserError(f"{source.folder} is a policy, and learner is vlm; give a model that writes.")
    if source is None and not model.weights and model.preset not in PRESETS:
        raise UserError(
            f"model.preset is {model.preset}, which cannot write; set model.preset={next(iter(PRESETS))}, or "
            "model.weights to a model of transformers."
        )
