"""The learner of the flow-matching policy: shards in, squared errors of velocities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from la4vla import manifest
from la4vla.config import LANGUAGE_HEAD, LORA, ModelConfig, SourceConfig, TrainConfig
from la4vla.data.explain import explain
from la4vla.data.loader import Loader
from la4vla.data.reader import StepData
from la4vla.data.robots import RobotSetup, places
from la4vla.data.setup import fingerprints, prepare
from la4vla.data.shards.read import tells_instructions
from la4vla.data.transforms import ResizeImages, chain_to_dicts
from la4vla.manifest import Checkpoint
from la4vla.model import flops, lora, weights
from la4vla.model.backbone import IMAGES
from la4vla.model.conversation import ConversationEncoder, as_text
from la4vla.model.freeze import set_trainable, summary_table
from la4vla.model.policy import Policy, build_policy, rebuild
from la4vla.model.presets import size_of
from la4vla.model.tokenizer import Prompter, build_prompter, slots_of
from la4vla.train import checkpoint
from la4vla.train.checkpoint import Identity
from la4vla.train.dist import World
from la4vla.train.engines.engine import Engine
from la4vla.train.learners import adapting, texts
from la4vla.train.learners.beginning import find_beginning
from la4vla.train.learners.validate import Validation
from la4vla.train.metrics import Record
from la4vla.train.resume import Resume
from la4vla.train.run_folder import write_first_batch
from la4vla.types import KINDS, SOURCE_KINDS, TextBatch, UserError

OF_WEIGHTS = (
    "preset",
    "readout",
    "embodiments",
    "compat",
)  # settings of the model without which its weights fit nowhere
DEPENDING = {
    "horizon": "the weights of the flatten readout are of one horizon (those of per_token are of any)",
    "llm_layers": "every layer has weights of its own",
    "state_dim": "the weights that read the state have a column for each of its numbers",
    "action_dim": "the weights that read and write actions have a row for each of their numbers",
}
"""Sizes that a config may set -> why weights of another one do not fit."""
FIRST_IMAGES = 32  # on the contact sheet of the first batch


class PolicyLearner:
    """Raises UserError where the data, the tokenizer or the validation cases do not fit the config or the checkpoint
    that the run goes on from."""

    def __init__(self, config: TrainConfig, resume: Resume, world: World) -> None:
        self._config, self._world = config, world
        self._writes = any(source.kind == "text" for source in _mixed(config))
        self._adapted = adapting.find_base(config, resume, world)
        size = size_of(config.model)
        self._spec = size.spec
        self._beginning = find_beginning(config, resume, self._writes)
        self._prompter = self._find_prompter(resume)
        self._encoder = None
        if self._writes:
            self._encoder = ConversationEncoder(self._prompter, size.vocab, ResizeImages(size.image_size).resized)
        inherited = resume.checkpoint if resume.checkpoint and resume.checkpoint.manifest.learner == "policy" else None
        if self._beginning is not None and not self._beginning.keeps_statistics:
            inherited = None
        self._setup = prepare(config, self._spec, self._prompter.encode, inherited, resume.own, self._encoder)
        if not self._setup.robots:
            raise UserError("a policy learns actions, and no source holds clips; add one, or set learner=vlm.")
        self._embodiments = self._numbered(inherited) if config.model.embodiments == "separate" else []
        where = (resume.position.stage, resume.position.stage_step)
        self._loader = Loader(config, self._setup, world.rank, world.size, where)
        if resume.own:
            assert resume.checkpoint is not None
            checkpoint.check_data(resume.checkpoint, fingerprints(self._setup))
        self._validation = Validation(config, self._setup, world) if config.validate.cases else None
        self._held_out = None
        if config.validate.texts:
            self._held_out = self._find_held_out()

    @property
    def kinds(self) -> tuple[str, ...]:
        return SOURCE_KINDS if self._writes else KINDS

    def build(self, resume: Resume) -> Policy:
        """Load, then freeze."""
        config, stage = self._config, self._config.stages[resume.position.stage]
        policy = self._loaded(resume).train()
        set_trainable(policy, stage.train)
        policy.insulated = stage.insulate
        if config.engine.compute == "frozen_bf16":
            adapting.hold_frozen_in_bf16(policy, adapting.held(policy, config, self._adapted))
        if config.engine.gradient_checkpointing:
            policy.enable_gradient_checkpointing()
        return policy

    def _loaded(self, resume: Resume) -> Policy:
        model, seed, source = self._config.model, self._config.run.seed, resume.checkpoint
        if self._adapted is not None:
            described = source.manifest.model if resume.own and source else self._description()
            policy = rebuild(described, self._adapted.folder, seed)
            if source is not None and source.manifest.base:
                checkpoint.load_weights(policy, source.folder, resume.own, policy.from_base)
            return policy
        if source is None:
            return build_policy(model, seed, self._writes, self._embodiments)
        if resume.own:
            policy = rebuild(source.manifest.model)
            checkpoint.load_weights(policy, source.folder, own=True)
            return policy
        if self._beginning is not None:
            policy = self._beginning.build(model, seed, self._writes)
            self._beginning.tell(policy, self._config, self._world)
            return policy
        # What the checkpoint does not hold stays fresh: the language head, or the flow head of a model that writes.
        policy = build_policy(replace(model, weights=""), seed, self._writes, self._embodiments)
        weights.load(policy, str(source.folder))
        return policy

    def _numbered(self, inherited: manifest.Checkpoint | None) -> list[str]:
        """Names of the embodiments with projections of their own. Raises UserError for one that the weights lack."""
        known = inherited.manifest.model["embodiments"] if inherited else []
        if known and (new := [name for name in self._setup.robots if name not in known]):
            raise UserError(
                f"run.init_from has projections of {', '.join(known)} and none of {new[0]}; take {new[0]} out of the "
                "mixture, or share the projections in both runs (model.embodiments=shared)."
            )
        return places(self._setup.robots, inherited)

    def _description(self) -> dict[str, Any]:
        """Of a policy that begins with fresh adapters, or with those of another run."""
        model = self._config.model
        return {
            "size": size_of(model).to_dict(),
            "readout": model.readout,
            "attention": model.attention,
            "dropout": model.dropout,
            "writes": self._writes,
            "embodiments": self._embodiments,
            "compat": asdict(model.compat),
            "lora": lora.description(model.lora),
        }

    def identity(self, module: Policy) -> Identity:
        return Identity(
            learner="policy",
            model=module.description,
            base=self._adapted.base.to_dict() if self._adapted else {},
            held=adapting.held(module, self._config, self._adapted),
            input_spec=asdict(self._spec),
            robots=self._setup.trained_robots,
            text=self._about_text(),
            sources=fingerprints(self._setup),
            tokenizer=self._prompter.files(),
        )

    def trainable_table(self, module: Policy) -> str:
        return summary_table(module)

    def explain(self) -> str:
        lines = [explain(self._config, self._setup, self._world.size)]
        for robot in self._setup.robots.values():
            lines += _about_robot(robot, len(self._setup.robots) > 1)
        return "\n".join([*lines, *([self._about_language_head()] if self._writes else [])])

    def shared_by_ranks(self) -> dict[str, Any]:
        chains = {name: chain_to_dicts(robot.chain) for name, robot in self._setup.robots.items()}
        return {"shards": fingerprints(self._setup), "statistics of the data": chains}

    def steps(self) -> Iterator[StepData]:
        return iter(self._loader)

    def ready(self, step: StepData, module: Policy, engine: Engine) -> StepData:
        return step

    def write_first_batch(self, step: StepData, folder: Path) -> None:
        """The first images that this rank trains on, and the first conversations."""
        shown = [
            batch.images.get(IMAGES) if isinstance(batch, TextBatch) else batch.images_NCHW for batch in step.batches
        ]
        images = [image for group in shown if group is not None for image in group[:FIRST_IMAGES]]
        write_first_batch(images[:FIRST_IMAGES], folder)
        told = [texts.as_told(batch, self._spell) for batch in step.batches if isinstance(batch, TextBatch)]
        if told:
            (folder / manifest.FIRST_TEXTS).write_text("".join(told))

    def validate(self, module: Policy, engine: Engine) -> Record:
        record = self._validation.measure(module, engine) if self._validation else {}
        return record | (self._held_out.losses(module, engine) if self._held_out else {})

    def flops(self, module: Policy, step: StepData) -> float:
        """Recomputation of checkpointed blocks is not counted: it is no progress."""
        total, readout, stage = 0.0, self._config.model.readout, self._config.stages[step.stage]
        lora = self._config.model.lora if LORA in stage.train else None
        for batch in step.batches:
            tokens = batch.input_ids_BL.shape[1]
            if isinstance(batch, TextBatch):
                shown = batch.images.get(IMAGES)
                images = 0 if shown is None else shown.shape[0]
                total += flops.text_step(module.size, images, batch.rows, tokens, batch.counted, stage.train, lora)
                continue
            images = 0 if batch.images_NCHW is None else batch.images_NCHW.shape[0]
            reached = {"head"} & {*stage.train} if stage.insulate else stage.train
            for seen, rows in ((0, batch.rows - 1), (images, 1)):
                cost, added = flops.forward(module.size, readout, seen, tokens), flops.NO_ADAPTERS
                if lora is not None:
                    added = flops.adapters(module.size, readout, lora, seen, tokens)
                if stage.insulate:
                    added = flops.Forward(0.0, 0.0, 0.0, added.head)
                total += rows * flops.training(cost, reached, False, added)
        return total

    def close(self) -> None:
        self._loader.close()

    def _find_held_out(self) -> texts.HeldOutTexts:
        if self._encoder is None:
            raise UserError("validate.texts is set and no text source is mixed; add one, or leave validate.texts out.")
        return texts.HeldOutTexts(self._config, self._setup, self._encoder, self._world)

    def _spell(self, ids: Sequence[int]) -> str:
        return as_text(self._prompter.tokenizer, ids)

    def _about_text(self) -> dict[str, Any]:
        """What it was told, and how it writes if it does."""
        told = [name for name, source in self._setup.sources.items() if tells_instructions(source.index)]
        about: dict[str, Any] = {"instructions": told}
        if self._writes:
            questions = sorted(texts.questions_of(self._setup.texts))
            about |= {"codec": texts.codec_of(self._setup.texts), "questions": questions}
            about["max_tokens"] = self._spec.max_tokens
        return about

    def _about_language_head(self) -> str:
        """Where its weights come from. Called before a step is made."""
        config = self._config
        trains = [name for name, stage in config.stages.items() if LANGUAGE_HEAD in stage.train]
        how = f"trains in {', '.join(trains)}" if trains else "is frozen"
        if not config.model.weights:
            return f"language head: random where run.init_from has none; it {how}"
        left_out = weights.truncated(config.model.weights, size_of(config.model))
        unseen = f", whose features it never saw: it was trained behind {left_out} more layers" if left_out > 0 else ""
        return f"language head: that of {config.model.weights} where it has one{unseen}; it {how}"

    def _find_prompter(self, resume: Resume) -> Prompter:
        """The tokenizer, which belongs to the weights: that of the checkpoint a run starts from or goes on from,
        whatever became of its folder since. Raises UserError where the config asks for another."""
        model, source = self._config.model, resume.checkpoint
        if source is None or (self._beginning is not None and not self._beginning.keeps_tokenizer):
            return build_prompter(model)
        if source.manifest.learner == "policy" and not resume.own and self._beginning is None:
            _check_model(model, source)
        prompter = Prompter.load(source.folder / manifest.TOKENIZER, self._spec, slots_of(model.compat))
        if not resume.own and model.tokenizer and build_prompter(model).files() != prompter.files():
            raise UserError(
                f"model.tokenizer is {model.tokenizer}, and {source.folder} was trained with another; leave it "
                "empty, the checkpoint has its own."
            )
        return prompter


def _check_model(model: ModelConfig, source: Checkpoint) -> None:
    """Raises UserError, with the reason, where the weights of a policy do not fit the model that the config asks
    for."""
    now, then = asdict(model), source.manifest.config["model"]
    for key in OF_WEIGHTS:
        if now[key] != then[key]:
            raise UserError(
                f"{source.folder} is of another model than model.{key}={now[key]}; set model.{key}={then[key]}, "
                "with which it was trained."
            )
    size, stored = size_of(model).to_dict(), source.manifest.model["size"]
    for name, reason in DEPENDING.items():
        if size[name] == stored[name] or (name == "horizon" and model.readout == "per_token"):
            continue
        raise UserError(
            f"{source.folder} was trained with model.{name}={stored[name]}, this run has {size[name]}, and {reason}; "
            f"set model.{name}={stored[name]}, or take the other weights alone (run.init_parts)."
        )


def _mixed(config: TrainConfig) -> list[SourceConfig]:
    """The sources that some stage mixes."""
    names = {name for stage in config.stages.values() for name in stage.mixture}
    return [source for name, source in config.data.sources.items() if name in names]


def _about_robot(robot: RobotSetup, several: bool) -> Iterator[str]:
    """Lines. several: whether it is one of several, whose sources are said."""
    body = robot.embodiment
    sources = f", in {', '.join(robot.sources)}" if several else ""
    yield f"embodiment {body.name}, {body.control_hz:g} Hz{sources}"
    for what, spec in (("state", body.state), ("action", body.action)):
        near = f"near {' '.join(f'{angle:g}' for angle in spec.rotation_near)}, " if any(spec.rotation_near) else ""
        yield (
            f"  {what}: {' '.join(spec.names)}; {spec.reference}, frame {spec.frame}, rotation {spec.rotation}, "
            f"{near}gripper {spec.gripper_closed:g} closed to {spec.gripper_open:g} open, unit {spec.unit}"
        )
    yield "transforms: " + " -> ".join(type(item).__name__ for item in robot.chain.transforms)
