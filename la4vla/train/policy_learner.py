"""The learner of the flow-matching policy: shards in, squared errors of velocities out."""

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
from la4vla.data.setup import fingerprints, prepare, view_sizes
from la4vla.data.transforms import chain_to_dicts
from la4vla.model import flops
from la4vla.model.freeze import set_trainable, summary_table
from la4vla.model.policy import Policy, build_policy, rebuild
from la4vla.model.presets import preset
from la4vla.model.tokenizer import Prompter, build_prompter
from la4vla.train import checkpoint
from la4vla.train.checkpoint import Identity
from la4vla.train.dist import World
from la4vla.train.engine import Engine
from la4vla.train.metrics import Record
from la4vla.train.resume import Resume
from la4vla.train.run_folder import write_first_batch
from la4vla.train.validate import Validation
from la4vla.types import KINDS, Batch, UserError

OF_WEIGHTS = ("preset", "readout")  # settings of the model without which its weights fit nowhere
FIRST_IMAGES = 32  # on the contact sheet of the first batch


class PolicyLearner:
    """Raises UserError where the data, the tokenizer or the validation cases do not fit the config or the checkpoint
    that the run goes on from."""

    def __init__(self, config: TrainConfig, resume: Resume, world: World) -> None:
        self._config, self._world = config, world
        self._spec = preset(config.model.preset).spec
        self._prompter = self._find_prompter(resume)
        self._setup = prepare(config, self._spec, self._prompter.encode, resume.checkpoint, resume.own)
        where = (resume.position.stage, resume.position.stage_step)
        self._loader = Loader(config, self._setup, world.rank, world.size, where)
        if resume.own:
            assert resume.checkpoint is not None
            checkpoint.check_data(resume.checkpoint, fingerprints(self._setup))
        self._validation = Validation(config, self._setup, world) if config.validate.cases else None

    @property
    def kinds(self) -> tuple[str, ...]:
        return KINDS

    def build(self, resume: Resume) -> Policy:
        """Load, then freeze."""
        config, source = self._config, resume.checkpoint
        if source is None:
            policy = build_policy(config.model, config.run.seed)
        else:
            fresh = replace(config.model, weights="")  # their places are all that is needed of fresh weights
            policy = rebuild(source.manifest.model) if resume.own else build_policy(fresh, config.run.seed)
            checkpoint.load_weights(policy, source.folder, resume.own)
        policy.train()
        set_trainable(policy, config.stages[resume.position.stage].train)
        if config.engine.gradient_checkpointing:
            policy.enable_gradient_checkpointing()
        return policy

    def identity(self, module: Policy) -> Identity:
        return Identity(
            model=module.description,
            input_spec=asdict(self._spec),
            transforms=chain_to_dicts(self._setup.chain),
            embodiment=self._setup.embodiment.to_dict(),
            views=list(self._setup.chain.views),
            view_sizes=view_sizes(self._setup),
            sources=fingerprints(self._setup),
            tokenizer=self._prompter.files(),
        )

    def trainable_table(self, module: Policy) -> str:
        return summary_table(module)

    def explain(self) -> str:
        body = self._setup.embodiment
        lines = [
            explain(self._config, self._setup, self._world.size),
            f"embodiment {body.name}, {body.control_hz:g} Hz",
        ]
        for what, spec in (("state", body.state), ("action", body.action)):
            near = f"near {' '.join(f'{angle:g}' for angle in spec.rotation_near)}, " if any(spec.rotation_near) else ""
            lines.append(
                f"  {what}: {' '.join(spec.names)}; {spec.reference}, frame {spec.frame}, rotation {spec.rotation}, "
                f"{near}gripper {spec.gripper_closed:g} closed to {spec.gripper_open:g} open, unit {spec.unit}"
            )
        lines.append("transforms: " + " -> ".join(type(item).__name__ for item in self._setup.chain.transforms))
        return "\n".join(lines)

    def shared_by_ranks(self) -> dict[str, Any]:
        return {"shards": fingerprints(self._setup), "statistics of the data": chain_to_dicts(self._setup.chain)}

    def steps(self) -> Iterator[StepData]:
        return iter(self._loader)

    def write_first_batch(self, step: StepData, folder: Path) -> None:
        """The first images that this rank trains on."""
        acting = [batch for batch in step.batches if isinstance(batch, Batch)]
        batches = [batch.images_NCHW[:FIRST_IMAGES] for batch in acting if batch.images_NCHW is not None]
        write_first_batch([image for images in batches for image in images][:FIRST_IMAGES], folder)

    def validate(self, module: Policy, engine: Engine) -> Record:
        return self._validation.measure(module, engine) if self._validation else {}

    def flops(self, module: Policy, step: StepData) -> float:
        """Recomputation of checkpointed blocks is not counted: it is no progress."""
        total, readout = 0.0, self._config.model.readout
        for batch in step.batches:
            assert isinstance(batch, Batch), "the policy's batches have actions"
            images = 0 if batch.images_NCHW is None else batch.images_NCHW.shape[0]
            tokens = batch.input_ids_BL.shape[1]
            for_one = flops.forward(module.size, readout, 0, tokens)
            for_images = flops.forward(module.size, readout, images, tokens)
            trained = self._config.stages[step.stage].train
            total += (batch.rows - 1) * flops.training(for_one, trained) + flops.training(for_images, trained)
        return total

    def close(self) -> None:
        self._loader.close()

    def _find_prompter(self, resume: Resume) -> Prompter:
        """The tokenizer, which belongs to the weights: that of the checkpoint a run starts from or goes on from,
        whatever became of its folder since. Raises UserError where the config asks for another."""
        model, source = self._config.model, resume.checkpoint
        if source is None:
            return build_prompter(model)
        now, then = asdict(model), source.manifest.config["model"]
        for key in () if resume.own else OF_WEIGHTS:
            if now[key] != then[key]:
                raise UserError(
                    f"{source.folder} is of another model than model.{key}={now[key]}; set model.{key}={then[key]}, "
                    "with which it was trained."
                )
        prompter = Prompter.load(source.folder / manifest.TOKENIZER, self._spec)
        if not resume.own and model.tokenizer and build_prompter(model).files() != prompter.files():
            raise UserError(
                f"model.tokenizer is {model.tokenizer}, and {source.folder} was trained with another; leave it "
                "empty, the checkpoint has its own."
            )
        return prompter
