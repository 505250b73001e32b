"""The vocabulary every room shares: one word per concept, and the typed values that cross room borders.

The words are explained in docs/README.md, "Glossary": episode, clip, view, sample, chunk, kind, source, stream,
micro-batch, step, stage, run, embodiment, units.

Shape letters
    B batch, L tokens of a row, N images of a batch, P tokens of an image, S state dims, T chunk steps (horizon),
    A action dims, E model width, H W C image height, width, channels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:  # a simulator's process has no use for torch, which takes a second and 200 MB to import
    import torch
    from torch import Tensor

Kind = Literal["la", "la_leaky", "vla"]
KINDS: tuple[Kind, ...] = ("la", "la_leaky", "vla")
"""In the order a step runs them: blind micro-batches first, those with images last (the engine's reduction hooks need
it). `la_leaky` is an ablation: the language model's attention skips the images, the action head does not
(model/backbone.py)."""

SOURCE_KINDS = ("la", "la_leaky", "text", "vla", "contrast")
"""Of sources and of micro-batches, in the order a step runs them: those with actions; `text`, conversations whose
answers are learned; and `contrast`, clips that a grounding model tells apart, which no step mixes with others."""

Role = Literal["system", "user", "assistant"]

NOT_COUNTED = -100
"""The label of a token that is given, not learned; what torch's cross-entropy skips."""


class UserError(ValueError):
    """Bad input, said in one sentence with its cure. Commands print it without a traceback and exit with status 2."""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted names, in order: `state.frame` -> its value. Tuples become lists,
    as in JSON."""
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return leaves


TRANSLATION = ("x", "y", "z")
ROTATION = ("rx", "ry", "rz")
"""Names of the dimensions of a hand's position and turn, in order."""
ARMS = ("left", "right")
"""Names of two arms. Their dimensions are called `left_x`, `right_gripper` and so on."""
GRIPPERS = ("gripper", *(f"{arm}_gripper" for arm in ARMS))
"""Names of the dimension of a gripper, of one arm or two."""


@dataclass(frozen=True)
class VectorSpec:
    """What the numbers of a state or an action vector mean.

    names                         one per dimension, in order; `x y z rx ry rz gripper` are understood, other names are
                                  passed through
    reference                     `absolute` pose or `delta` command per control step
    frame                         coordinate frame of the translation and rotation
    rotation                      representation of the `r*` dims (wrap-safe arithmetic needs it)
    rotation_near                 `rx ry rz` of a rotation, rad, about which the `r*` dims are continuous; of the sets
                                  of numbers that mean one turn it is the one on this side (`la4vla/data/rotation.py`).
                                  The zeros: angles of at most pi.
    gripper_open, gripper_closed  raw values of the `gripper` dim at the two ends
    unit                          what 1.0 of a translation dim is, in words ("m", "1 cm of target motion")
    metres_per_unit               the same as a number; None: unknown, or no `x y z`
    radians_per_unit              what 1.0 of an `r*` dim is; None: unknown, or none of them
    """

    names: tuple[str, ...]
    reference: Literal["absolute", "delta"]
    frame: Literal["base", "tool"] = "base"
    rotation: Literal["none", "axis_angle", "euler_xyz"] = "none"
    gripper_open: float = 1.0
    gripper_closed: float = 0.0
    unit: str = "m"
    rotation_near: tuple[float, float, float] = (0.0, 0.0, 0.0)
    metres_per_unit: float | None = None
    radians_per_unit: float | None = None

    def dims(self, *names: str) -> list[int]:
        """Indices of the named dimensions that exist, in the order asked."""
        return [self.names.index(name) for name in names if name in self.names]

    @property
    def has_position(self) -> bool:
        """Whether it holds a place or a way in space or in a plane: two of x, y and z at least."""
        return len(self.dims(*TRANSLATION)) >= 2

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of two arms that the vector holds a position of; empty for one arm."""
        if self.has_position or not all(self.of_arm(arm).has_position for arm in ARMS):
            return ()
        return ARMS

    def of_arm(self, arm: str) -> VectorSpec:
        """The dims of one of two arms, without its name in front of theirs; itself for an empty name."""
        if not arm:
            return self
        return replace(self, names=tuple(name.removeprefix(f"{arm}_") for name in self.names_of(arm)))

    def names_of(self, arm: str) -> tuple[str, ...]:
        """The names of the dims of one of two arms; all names for an empty one."""
        return tuple(name for name in self.names if not arm or name.startswith(f"{arm}_"))

    def translation(self, values_TD: np.ndarray) -> np.ndarray:
        """float64 [T, 3], x, y and z of values [T, D]; zeros for an axis that the vector has not."""
        moved_T3 = np.zeros((len(values_TD), len(TRANSLATION)))
        for axis, name in enumerate(TRANSLATION):
            for dim in self.dims(name):
                moved_T3[:, axis] = values_TD[:, dim]
        return moved_T3

    def opening(self, values_TD: np.ndarray) -> np.ndarray | None:
        """Gripper dimension [T] of values [T, D] on a scale where 1 is open and 0 is closed, None without a gripper."""
        index = self.dims("gripper")
        if not index:
            return None
        return (values_TD[:, index[0]] - self.gripper_closed) / (self.gripper_open - self.gripper_closed)


NUMERIC_UNITS = ("metres_per_unit", "radians_per_unit")
"""Fields of a VectorSpec that may be unknown."""


class FieldDifference(NamedTuple):
    """A field in which two embodiments differ.

    field   by its dotted name, `state.frame`
    mine    its value in the embodiment that is compared
    other   its value in the one it is compared with
    """

    field: str
    mine: Any
    other: Any


@dataclass(frozen=True)
class Embodiment:
    """A robot's typed interface, written on shards, checkpoints and envs; a mismatch between them is an error."""

    name: str
    control_hz: float
    state: VectorSpec
    action: VectorSpec

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def difference(self, other: Embodiment) -> FieldDifference | None:
        """The first field in which the other one differs; None where none does. What one of them does not know
        (NUMERIC_UNITS) is no difference."""
        theirs = flat(other.to_dict())
        differing = (
            FieldDifference(name, value, theirs[name])
            for name, value in flat(self.to_dict()).items()
            if value != theirs[name]
            and not (name.rpartition(".")[2] in NUMERIC_UNITS and None in (value, theirs[name]))
        )
        return next(differing, None)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Embodiment:
        def spec(values: Mapping[str, Any]) -> VectorSpec:
            tuples = {name: tuple(values[name]) for name in ("names", "rotation_near") if name in values}
            return VectorSpec(**{**values, **tuples})

        return Embodiment(raw["name"], float(raw["control_hz"]), spec(raw["state"]), spec(raw["action"]))


@dataclass(frozen=True)
class Observation:
    """What an env shows a policy.

    views        name -> uint8 RGB [H, W, 3], upright
    state        float32 [S], raw units
    instruction  free text
    privileged   what only a simulator knows, by name; empty unless the policy asks for it
    replan       whether a policy that plans is asked to plan anew, now
    """

    views: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    privileged: Mapping[str, float | str] = field(default_factory=dict)
    replan: bool = False


@dataclass(frozen=True)
class Sample:
    """One training sample, or one query of a served policy (then `action` is None), on its way through the transforms.

    instruction    text
    state          float32 [S]
    action         float32 [T, A], rows past the end of the clip are zero and not valid
    action_valid   bool [T]
    views          uint8 RGB [H, W, 3] each, in slot order; empty for kind `la`. A view that does not exist is not in
                   the dict.
    slots          view name -> slot number, counted from 0, over all views the model may be shown
    state_mask     bool [S], the dimensions that this embodiment has (all of them before padding)
    action_mask    bool [A], likewise
    key            `source/clip/start`, names the sample in error messages
    action_states  float32 [T, S], the state of each action's own frame; with `action`, None for a query
    """

    kind: Kind
    key: str
    instruction: str
    state: np.ndarray
    action: np.ndarray | None
    action_valid: np.ndarray
    state_mask: np.ndarray
    action_mask: np.ndarray
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    slots: Mapping[str, int] = field(default_factory=dict)
    action_states: np.ndarray | None = None

    def but(self, **changes: Any) -> Sample:
        return replace(self, **changes)


@dataclass(frozen=True)
class InputSpec:
    """What a model takes: the sizes that `data` must deliver and `model` asserts.

    image_size      pixels, square
    image_tokens    P, tokens of one image
    horizon         T, steps of a chunk
    state_dim       S, dims of the padded state
    action_dim      A, dims of the padded action
    max_tokens      rows longer than this are an error, never truncated
    image_token_id  the id repeated P times per image
    pad_token_id    fills rows on the right
    """

    image_size: int
    image_tokens: int
    horizon: int
    state_dim: int
    action_dim: int
    max_tokens: int
    image_token_id: int
    pad_token_id: int


@dataclass(frozen=True)
class Batch:
    """One micro-batch: samples of one kind, ready for the model.

    kind                one of KINDS
    input_ids_BL        int64, right-padded with pad_token_id to the longest row
    text_mask_BL        bool, True at real tokens (text and image positions)
    images_NCHW         uint8 RGB in 0..255, or None for `la`; N counts the images that exist, row by row
    image_index         int64 [N * P], positions in the flattened [B * L] rows where the images' tokens go, or None
    state_BS            float32 in [-1, 1], 0 on absent dims
    state_mask_BS       bool, True at dims the embodiment has
    actions_BTA         float32 in [-1, 1], 0 on absent dims and past the end of the clip
    action_mask_BTA     bool, True where the action is real; the only positions that count in the loss
    noise_BTA           float32, the flow's start, drawn from the sample's name
    time_B              float32 in [0, 1], the flow time of the loss, drawn from the sample's name
    embodiment_B        int64, number of each row's embodiment in the model
    keys                one name per row, for error messages
    """

    kind: Kind
    input_ids_BL: Tensor
    text_mask_BL: Tensor
    images_NCHW: Tensor | None
    image_index: Tensor | None
    state_BS: Tensor
    state_mask_BS: Tensor
    actions_BTA: Tensor
    action_mask_BTA: Tensor
    noise_BTA: Tensor
    time_B: Tensor
    embodiment_B: Tensor
    keys: tuple[str, ...]

    @property
    def rows(self) -> int:
        return self.input_ids_BL.shape[0]

    @property
    def counted(self) -> int:
        """Values that count in the loss. Waits for the device where the batch is on one."""
        return int(self.action_mask_BTA.sum())

    def to(self, device: torch.device | str) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> Batch:
        tensors = {item.name: self.__dict__[item.name] for item in fields(self) if item.name not in ("kind", "keys")}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items() if tensor is not None})


@dataclass(frozen=True)
class Turn:
    """What one side of a conversation says.

    images  numbers of the row's images that are shown before the text
    """

    role: Role
    text: str
    images: tuple[int, ...] = ()


@dataclass(frozen=True)
class TextRow:
    """One conversation of a text source. Every assistant turn is an answer that is learned; the last turn is one.

    key          `source/row`, names the row in error messages
    turns        alternate between user and assistant, behind at most one system turn
    images       uint8 RGB [H, W, 3] each
    question     type of its last question (`subtasks`, `next`, ... or what its file calls it)
    task         of the demonstration, or empty
    episode      that it was made from, or empty
    span         first frame and the one past the last, or None
    instruction  of the clip, or empty
    """

    key: str
    turns: tuple[Turn, ...]
    images: tuple[np.ndarray, ...]
    question: str
    task: str = ""
    episode: str = ""
    span: tuple[int, int] | None = None
    instruction: str = ""

    @property
    def answer(self) -> str:
        return self.turns[-1].text


@dataclass(frozen=True)
class TextBatch:
    """One micro-batch of conversations, ready for a model that writes.

    kind          `text`
    input_ids_BL  int64, padded to the longest row: on the right to train, on the left where the model writes on
    text_mask_BL  bool, True at real tokens (text and image positions)
    labels_BL     int64, the token itself where it belongs to an answer or ends one, else NOT_COUNTED. Not shifted: the
                  model predicts labels_BL[:, l] from the tokens before l.
    answer_index  int64 [counted], positions in the flattened [B * L] rows of the tokens whose label counts, in order
    images        what the model takes beside the tokens, by the name of its argument; empty without images
    keys          one name per row, for error messages
    """

    kind: Literal["text"]
    input_ids_BL: Tensor
    text_mask_BL: Tensor
    labels_BL: Tensor
    answer_index: Tensor
    images: Mapping[str, Tensor]
    keys: tuple[str, ...]

    @property
    def rows(self) -> int:
        return self.input_ids_BL.shape[0]

    @property
    def counted(self) -> int:
        """Answer tokens. Waits for no device."""
        return self.answer_index.numel()

    def to(self, device: torch.device | str) -> TextBatch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> TextBatch:
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> TextBatch:
        return replace(
            self,
            input_ids_BL=function(self.input_ids_BL),
            text_mask_BL=function(self.text_mask_BL),
            labels_BL=function(self.labels_BL),
            answer_index=function(self.answer_index),
            images={name: function(tensor) for name, tensor in self.images.items()},
        )


def answer_places(labels_BL: Tensor) -> Tensor:
    """int64 [counted], `TextBatch.answer_index` of these labels."""
    return (labels_BL.flatten() != NOT_COUNTED).nonzero().flatten()


@dataclass(frozen=True)
class PairGradients:
    """What the loss of a whole group says to one micro-batch of it: the second half of GradCache.

    loss         fp32 0-d, of the group
    motion_BD    fp32, gradient of the group's loss, times its pairs, by the micro-batch's embeddings of motions
    sentence_BD  likewise of sentences
    scale        fp32 [1], this micro-batch's share of the gradient by the logarithm of the logit scale
    """

    loss: Tensor
    motion_BD: Tensor
    sentence_BD: Tensor
    scale: Tensor


@dataclass(frozen=True)
class ContrastBatch:
    """One micro-batch of pairs of a motion and its sentence, all of one group.

    kind             `contrast`
    group            number of the group in the step's source, from 0 at the run's beginning
    source           that the group is of
    input_ids_BL     int64, sentences, all padded to the same length
    images_BCHW      uint8 RGB in 0..255, the scene when the motion begins; None for a model without vision
    actions_BTA      float32 in [-1, 1], 0 past the end of the clip
    action_valid_BT  bool, True where the clip has an action. A row without any is left out of its group.
    keys             one name per row, for error messages
    gradients        of the group's loss; None: the pairs are to be embedded
    """

    kind: Literal["contrast"]
    group: int
    source: str
    input_ids_BL: Tensor
    images_BCHW: Tensor | None
    actions_BTA: Tensor
    action_valid_BT: Tensor
    keys: tuple[str, ...]
    gradients: PairGradients | None = None

    @property
    def rows(self) -> int:
        return self.input_ids_BL.shape[0]

    @property
    def kept_B(self) -> Tensor:
        """bool, the rows that count."""
        return self.action_valid_BT.any(dim=1)

    @property
    def counted(self) -> int:
        """Pairs that count. Waits for the device where the batch is on one."""
        return int(self.kept_B.sum())

    def to(self, device: torch.device | str) -> ContrastBatch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> ContrastBatch:
        return self._map(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def _map(self, function: Any) -> ContrastBatch:
        tensors = {name: self.__dict__[name] for name in ("input_ids_BL", "images_BCHW", "actions_BTA")}
        moved = {name: None if tensor is None else function(tensor) for name, tensor in tensors.items()}
        return replace(self, **moved, action_valid_BT=function(self.action_valid_BT))


class TextEncoder(Protocol):
    """Conversations -> micro-batches. Belongs to a model's tokenizer and chat template; pickles."""

    def prepare(self, row: TextRow) -> Any:
        """One row as tokens, labels and images; on a thread of the loader's pool.

        Raises UserError for a row that is longer than the model takes, or in which nothing would be learned.
        """
        ...

    def batch(self, prepared: Sequence[Any]) -> TextBatch:
        """Rows that `prepare` gave, right-padded."""
        ...


@dataclass(frozen=True)
class Deed:
    """A motion and words for it: what a scorer judges.

    key       names it in error messages
    sentence  a low-level instruction that may or may not say what is done
    image     uint8 RGB [H, W, 3], the scene when the motion begins
    actions   float32 [T, A], raw units of the embodiment, T from 1 to the scorer's horizon
    """

    key: str
    sentence: str
    image: np.ndarray
    actions: np.ndarray


class Scorer(Protocol):
    """Says how well words fit a motion in a scene (GPLA's grounding score and its rivals).

    name  in tables and files
    """

    @property
    def name(self) -> str: ...

    def scores(self, deeds: Sequence[Deed]) -> np.ndarray:
        """float32 [deeds], higher where the words fit better; comparable among the deeds of one scorer only. The same
        whatever the deeds are asked with.

        Raises UserError for a deed that it cannot take.
        """
        ...
