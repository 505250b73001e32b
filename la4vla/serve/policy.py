"""A checkpoint as a policy: observations in, chunks of raw actions out.

Everything is rebuilt from the checkpoint folder, the transform chain and the tokenizer included, so the served policy
is the trained one. A chunk depends on its observation and its noise key alone: the same episode gets the same actions
alone or in a batch (to fp32 rounding), in any order. A policy that was trained without views never sees a pixel.
`as_kind` gives the same weights another kind of row, without images or with masked ones. A UserError refuses an
embodiment that is not the checkpoint's, a missing view, and weights that are not the manifest's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file
from tokenizers import Tokenizer

from la4vla import manifest
from la4vla.config import FlowConfig
from la4vla.data.processor import Processor
from la4vla.data.rotation import on_side
from la4vla.data.transforms import chain_from_dicts
from la4vla.model.base import Base, load_average, load_stored
from la4vla.model.init import init_weights
from la4vla.model.policy import Policy, rebuild
from la4vla.model.presets import ModelSize
from la4vla.model.tokenizer import FILE, Prompter
from la4vla.rng import RngUse, generator
from la4vla.serve.policy_like import EpisodeKey, NoiseKey, Said, TrainedInputs
from la4vla.types import Batch, Embodiment, InputSpec, Kind, Observation, Sample, UserError

NOT_FINITE = (
    "the policy's actions are not finite: its training diverged, or the state is far from its training data; "
    "use an earlier checkpoint, or check the state."
)


class PolicyLost(UserError):
    """The policy cannot be queried any more. The chunks it gave before are valid."""


@dataclass(frozen=True)
class ServedPolicy:
    """Build one with `load` or `untrained`.

    identity    sha256 of the weights, `ema-` and that of their average, or how the untrained ones were made
    step        optimizer steps of the checkpoint
    views       names of the images it needs, in slot order; empty for kind `la`: a policy of language and state alone
    view_sizes  view -> (height, width) of the images it was trained on, one for each size
    kind        of its rows: the kind its run was trained on, `vla` if that was one of several
    processor   its run's, which turned samples into batches; its flow says how many Euler steps the sampler takes
    """

    identity: str
    step: int
    embodiment: Embodiment
    views: tuple[str, ...]
    view_sizes: Mapping[str, tuple[tuple[int, int], ...]]
    kind: Kind
    processor: Processor
    policy: Policy
    device: torch.device

    @staticmethod
    def load(
        folder: str | Path,
        device: str | torch.device = "cpu",
        base: str = "",
        embodiment: str = "",
        weights: str = "raw",
    ) -> ServedPolicy:
        """The policy of a checkpoint folder, or of a run's newest checkpoint.

        embodiment: name of the robot that it is to drive, if it was trained on several. base: where the weights lie
        that its adapters belong to, if not where they lay when it was trained. weights: one of manifest.WHICH_WEIGHTS.
        Raises UserError for a checkpoint that is incomplete, whose weights are not the manifest's, that has no average,
        whose base is not there, or which does not know the robot.
        """
        folder = manifest.resolve(folder)
        description = manifest.read(folder)
        held, path = contents(folder, description, embodiment), whole_weights(folder, description)
        with _damage(folder, "model"):
            below = Base.from_dict(description.base).find(base, "--base") if description.base else None
            policy = rebuild(_on_any_device(description.model), below)
            if below is None:
                policy.load_state_dict(load_file(path))
            else:
                load_stored(policy, load_file(path), folder, policy.from_base)
            if weights == "ema":
                load_average(policy, folder, description)
        return _serve(held, policy, description.identity(weights), description.step, device)

    @staticmethod
    def untrained(
        folder: str | Path, seed: int, device: str | torch.device = "cpu", embodiment: str = ""
    ) -> ServedPolicy:
        """The control: a checkpoint's architecture, transforms and tokenizer with random weights."""
        folder = manifest.resolve(folder)
        description = manifest.read(folder)
        held = contents(folder, description, embodiment)
        with _damage(folder, "model"):
            policy = rebuild({**_on_any_device(description.model), "lora": {}})
        init_weights(policy, "policy", seed)
        identity = f"untrained, seed {seed}, architecture of {description.weights_sha256[:16]}"
        return _serve(held, policy, identity, 0, device)

    @property
    def spec(self) -> InputSpec:
        return self.policy.spec

    @property
    def horizon(self) -> int:
        return self.spec.horizon

    @property
    def counts_on(self) -> int:
        return 0

    @property
    def privileged(self) -> tuple[str, ...]:
        return ()

    @property
    def trained(self) -> TrainedInputs:
        state = self.processor.chain.normalize.state
        return TrainedInputs(state.min, state.max, self.view_sizes, self.spec.image_size)

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries that compute the actions."""
        return {"torch": torch.__version__}

    def as_kind(self, kind: Kind) -> ServedPolicy:
        """The same policy, queried with rows of another kind. Raises UserError where a blind one would see images."""
        if kind != "la" and not self.views:
            raise UserError(f"a policy without views cannot be asked as {kind}; ask it as la.")
        return replace(self, kind=kind, views=() if kind == "la" else self.views)

    def too_long(self, instruction: str) -> str:
        """Why this policy cannot be told an instruction, as a sentence; empty if it can."""
        try:
            self.processor.encode(instruction, tuple(range(len(self.views))))
        except UserError as error:
            return str(error)
        return ""

    def check(self, embodiment: Embodiment, views: Sequence[str]) -> None:
        """Raises UserError where an env with this embodiment and these views cannot be driven by this policy."""
        require_match(self.embodiment, self.views, embodiment, views)

    def open(self, episode: EpisodeKey) -> None:
        """Does nothing: a chunk depends on its observation and its noise key alone."""

    def infer(self, observations: Sequence[Observation], noise_keys: Sequence[NoiseKey]) -> list[np.ndarray]:
        """One chunk for each observation: float32 [horizon, A of the embodiment], raw units, not clipped.

        Raises UserError for a missing view, a state of the wrong size and a chunk that is not finite.
        """
        batch = self.batch(observations, noise_keys)
        with torch.inference_mode():
            chunks_BTA = self.policy.sample(batch, self.processor.flow.steps).cpu().numpy()
        if not np.isfinite(chunks_BTA).all():
            raise UserError(NOT_FINITE)
        return [
            self.processor.chain.inverse(chunk_TA, given.state).astype(np.float32)
            for chunk_TA, given in zip(chunks_BTA, observations, strict=True)
        ]

    def said(self) -> list[tuple[Said, ...]]:
        return []

    def batch(self, observations: Sequence[Observation], noise_keys: Sequence[NoiseKey]) -> Batch:
        """The model's input for these observations, on its device. Raises UserError as `infer` does."""
        prepared = [
            self.processor.prepare(self._query(given, key), generator(key.seed, RngUse.SERVE, *key[1:]))
            for given, key in zip(observations, noise_keys, strict=True)
        ]
        return self.processor.batch(prepared).to(self.device)

    def _query(self, observation: Observation, key: NoiseKey) -> Sample:
        _require_views(self.views, tuple(observation.views))
        dims = len(self.embodiment.state.names)
        if observation.state.shape != (dims,):
            raise UserError(
                f"the state has shape {list(observation.state.shape)}; this policy's embodiment has {dims} dims."
            )
        return Sample(
            kind=self.kind,
            key=f"{key.task}/{key.episode}/{key.query}",
            instruction=observation.instruction,
            state=on_side(observation.state.astype(np.float32), self.embodiment.state),
            action=None,
            action_valid=np.ones(self.spec.horizon, bool),
            state_mask=np.ones(dims, bool),
            action_mask=np.ones(len(self.embodiment.action.names), bool),
            views={name: observation.views[name] for name in self.views},
        )


def require_match(mine: Embodiment, needed: Sequence[str], embodiment: Embodiment, views: Sequence[str]) -> None:
    """Raises UserError where a policy of `mine` and `needed` cannot drive an env of `embodiment` and `views`."""
    if differs := mine.difference(embodiment):
        raise UserError(
            f"the embodiment is another: {differs.field} is {differs.mine} here and {differs.other} in the env; "
            "evaluate it on its own env, or construct with this env's robot (read.robot) and train on that."
        )
    _require_views(needed, views)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds beside its weights. The fields are those of ServedPolicy."""

    embodiment: Embodiment
    views: tuple[str, ...]
    view_sizes: Mapping[str, tuple[tuple[int, int], ...]]
    kind: Kind
    processor: Processor


def contents(folder: Path, description: manifest.Manifest, robot: str = "") -> Contents:
    """All of a checkpoint that can be read without its model. robot: name of the embodiment, if it knows several.
    Raises UserError for what is missing or damaged, and for the checkpoint of another learner."""
    manifest.require_policy(folder, description)
    tokenizer = folder / manifest.TOKENIZER / FILE
    if not tokenizer.is_file():
        raise UserError(f"{tokenizer}: missing; copy the checkpoint again.")
    with _damage(folder, "embodiment"):
        trained = description.robot(robot)
        embodiment = Embodiment.from_dict(trained.embodiment)
    with _damage(folder, "model"):
        spec = _size(description).spec
    with _damage(folder, "config"):
        views, kind, flow = tuple(trained.views), _kind(description, trained), _flow(description)
        sizes = {name: tuple((int(h), int(w)) for h, w in trained.view_sizes[name]) for name in views}
    with _damage(folder, "tokenizer"):  # read from memory: from a file the library raises a bare Exception
        prompter = Prompter(Tokenizer.from_buffer(tokenizer.read_bytes()), spec)
    known: list[str] = description.model["embodiments"]
    place = known.index(embodiment.name) if known else 0
    processor = Processor(chain_from_dicts(trained.transforms), prompter.encode, spec, flow, place)
    return Contents(embodiment, views, sizes, kind, processor)


def whole_weights(folder: Path, description: manifest.Manifest) -> Path:
    """The file of a checkpoint's weights. Raises UserError unless its sha256 is the manifest's."""
    path = folder / manifest.WEIGHTS
    if file_sha256(path) != description.weights_sha256:
        raise UserError(f"{path}: not the weights its manifest describes; copy the checkpoint again.")
    return path


def file_sha256(path: Path) -> str:
    """Hex digest of a file. Raises UserError where there is none."""
    if not path.is_file():
        raise UserError(f"{path}: missing from its checkpoint; copy the checkpoint again.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _on_any_device(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """A manifest's `model` entry. One that was trained with flash_attention_2, which computes neither in fp32 nor on a
    CPU, gets sdpa: the weights and the mathematics are the same."""
    return {**model, "attention": "sdpa"} if model["attention"] == "flash_attention_2" else model


def _serve(held: Contents, policy: Policy, identity: str, step: int, device: str | torch.device) -> ServedPolicy:
    place = torch.device(device)
    return ServedPolicy(
        identity=identity,
        step=step,
        embodiment=held.embodiment,
        views=held.views,
        view_sizes=held.view_sizes,
        kind=held.kind,
        processor=held.processor,
        policy=policy.eval().requires_grad_(False).to(place),
        device=place,
    )


@contextmanager
def _damage(folder: Path, part: str) -> Iterator[None]:
    """Turns an error while a part of a checkpoint is read into a UserError that names the part."""
    try:
        yield
    except UserError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OmegaConfBaseException,
        RuntimeError,
        TypeError,
        ValueError,
    ) as e:
        says = f"{type(e).__name__}: {str(e).partition(chr(10))[0]}"
        raise UserError(f"{folder}: its {part} is damaged ({says}); copy the checkpoint again.") from e


def _size(description: manifest.Manifest) -> ModelSize:
    """Raises TypeError where a value is not of its field's type."""
    size = ModelSize.from_dict(description.model["size"])
    for item in fields(size):
        if not isinstance(description.model["size"][item.name], int if item.type == "int" else int | float):
            raise TypeError(f"{item.name} must be of type {item.type}")
    return size


def _flow(description: manifest.Manifest) -> FlowConfig:
    """Raises omegaconf's errors where a value is not of its field's type."""
    merged: Any = OmegaConf.merge(OmegaConf.structured(FlowConfig), description.config["flow"])
    return FlowConfig(**merged)


def _kind(description: manifest.Manifest, trained: manifest.TrainedRobot) -> Kind:
    """The kind of a checkpoint's rows: `la` without views, `la_leaky` if every source with views was of that kind,
    else `vla`."""
    if not trained.views:
        return "la"
    stages, sources = description.config["stages"], description.config["data"]["sources"]
    mixed = {name for stage in stages.values() for name, share in stage["mixture"].items() if share}
    kinds = {source["kind"] for name, source in sources.items() if name in mixed}
    return "la_leaky" if "la_leaky" in kinds and "vla" not in kinds else "vla"


def _require_views(needed: Sequence[str], views: Sequence[str]) -> None:
    for name in needed:
        if name not in views:
            raise UserError(
                f"trained with the view `{name}`, the env shows {', '.join(views) or 'none'}; choose a protocol "
                "with that view, or name it so when constructing (read.views)."
            )
