"""Floating point operations of one sample, counted from the sizes: what
`benchmarks.speed.throughput` and the trainer's MFU divide by.

Counted are matrix products, attention scores and mixtures included (2 operations a multiply-add; causal attention as if
it were full, as kernels without a causal skip do it). Norms, activations and softmax are not (under 1 %). Matches FACTS
4.1 "Forward cost per sample" (a test holds it).

The rule for a training step, per module: 1x forward; backward 2x when it trains, 1x when it is frozen but the gradient
passes through it to something that trains below, else 0; + 1x when it is checkpointed and so runs twice. A frozen tower
costs 1x. Adapters that train count as modules that train; what they adapt is frozen. The recomputation is left out of
MFU's numerator (it is no progress) and counted in a layout's cost.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass

from la4vla.config import LoraConfig
from la4vla.model.presets import ModelSize

PEAK_BF16 = {"A100": 312e12, "A800": 312e12, "H100": 989e12, "H800": 989e12, "H200": 989e12}
"""Dense bf16 operations a second by a part of the GPU's name (NVIDIA's data sheets, SXM parts, without sparsity)."""


def peak_bf16(gpu: str) -> float:
    """Dense bf16 operations a second of a GPU by its name; 0 where they are not known: no MFU is better than a wrong
    one."""
    if any(form in gpu for form in ("PCIe", "NVL")):  # slower than the SXM part of the same name
        return 0.0
    return next((peak for part, peak in PEAK_BF16.items() if part in gpu), 0.0)


@dataclass(frozen=True)
class Forward:
    """Forward operations of one sample, by module group."""

    vision: float
    projector: float
    llm: float
    head: float

    @property
    def total(self) -> float:
        return self.vision + self.projector + self.llm + self.head


def forward(size: ModelSize, readout: str, images: int, tokens: int) -> Forward:
    """images: how many go through the vision tower. tokens: length of the row, image tokens and padding included."""
    return Forward(
        vision=images * vision(size),
        projector=images * 2 * size.image_tokens * (size.vision_width * size.shuffle**2 + size.width) * size.width,
        llm=llm(size, tokens),
        head=head_memory(size, tokens) + head_velocity(size, readout, tokens),
    )


NO_ADAPTERS = Forward(0.0, 0.0, 0.0, 0.0)


def adapters(size: ModelSize, readout: str, lora: LoraConfig, images: int, tokens: int) -> Forward:
    """What adapters on their targets' linear layers add to `forward`: two thin products a layer and position."""
    width, steps = size.width, size.horizon
    kv_width = width // size.llm_heads * size.kv_heads
    llm = size.llm_layers * (4 * width + 2 * (width + kv_width) + 3 * (width + size.llm_mlp)) * tokens
    vision = size.vision_layers * (8 * size.vision_width + 2 * (size.vision_width + size.vision_mlp))
    projector = size.vision_width * size.shuffle**2 + 3 * width
    added = {
        "vision": vision * images * (size.patches + 1),
        "projector": projector * images * size.image_tokens,
        "llm": llm,
        "head": _head_adapters(size, readout, steps, tokens),
    }
    return Forward(**{group: 2.0 * lora.rank * n if group in lora.targets else 0.0 for group, n in added.items()})


def _head_adapters(size: ModelSize, readout: str, steps: int, tokens: int) -> int:
    """Sum over the head's linear layers of (inputs + outputs) x positions."""
    width, hidden = size.width, size.head_hidden
    block = steps * (4 * width + 2 * (width + size.head_mlp)) + (tokens + 1) * 3 * width
    once = size.state_dim + 2 * hidden + width
    each = size.action_dim + 5 * width
    if readout == "per_token":
        block += steps * 7 * width
        each += 3 * width + size.action_dim
    else:
        once += (steps + 1) * width + width + 2 * hidden + steps * size.action_dim
    return size.head_blocks * block + steps * each + once


def training(
    cost: Forward, trained: Collection[str], checkpointing: bool = False, adapters: Forward = NO_ADAPTERS
) -> float:
    """Operations of forward and backward of one sample; `trained` are names of config.MODULE_GROUPS. adapters: what
    those that train add to its forward; the weights that they adapt pass the gradient on and get none."""
    adapted = {group for group, added in asdict(adapters).items() if added}
    learn = {*trained, *adapted}
    below_projector = "vision" in learn
    below_llm = below_projector or "projector" in learn or "embeddings" in learn
    below_head = below_llm or "llm" in learn
    total = cost.vision * _passes("vision" in adapted, "vision" in trained, checkpointing)
    total += cost.projector * _passes(below_projector or "projector" in adapted, "projector" in trained, False)
    total += cost.llm * _passes(below_llm or "llm" in adapted, "llm" in trained, checkpointing)
    total += cost.head * _passes(below_head or "head" in adapted, "head" in trained, False)
    total += (adapters.vision + adapters.llm) * _passes(True, True, checkpointing)
    return total + (adapters.projector + adapters.head) * _passes(True, True, False)


def text_step(
    size: ModelSize,
    images: int,
    rows: int,
    tokens: int,
    answers: int,
    trained: Collection[str],
    lora: LoraConfig | None = None,
) -> float:
    """Operations of forward and backward of a micro-batch of conversations. answers: tokens that are predicted. lora:
    of adapters that train."""
    seen = forward(size, "per_token", images, tokens)
    shown = Forward(seen.vision, seen.projector, rows * seen.llm, 0.0)
    added = NO_ADAPTERS
    if lora is not None:
        own = adapters(size, "per_token", lora, images, tokens)
        added = Forward(own.vision, own.projector, rows * own.llm, 0.0)
    behind = {"vision", "projector", "embeddings", "llm"} & {*trained, *(lora.targets if lora else ())}
    head = answers * 2 * size.width * size.vocab
    return training(shown, trained, False, added) + head * _passes(bool(behind), "language_head" in trained, False)


def chunk(size: ModelSize, readout: str, images: int, tokens: int, steps: int, cached: bool) -> float:
    """Operations of one sampled chunk; cached: the context is projected once, not once a flow step."""
    cost = forward(size, readout, images, tokens)
    memory = head_memory(size, tokens) * (1 if cached else steps)
    return cost.vision + cost.projector + cost.llm + memory + steps * head_velocity(size, readout, tokens)


def vision(size: ModelSize) -> float:
    """One image through the vision tower: patches, then blocks over patches + CLS."""
    length, width = size.patches + 1, size.vision_width
    patch = 2 * size.patches * 3 * size.patch_size**2 * width
    block = 2 * length * (4 * width**2 + 2 * width * size.vision_mlp) + 4 * length**2 * width
    return patch + size.vision_layers * block


def llm(size: ModelSize, tokens: int) -> float:
    kv_width = size.width // size.llm_heads * size.kv_heads
    matrices = 2 * size.width**2 + 2 * size.width * kv_width + 3 * size.width * size.llm_mlp
    return size.llm_layers * (2 * tokens * matrices + 4 * tokens**2 * size.width)


def head_memory(size: ModelSize, tokens: int) -> float:
    """The state token, and keys and values of every block for the context and it."""
    state = 2 * (size.state_dim + size.width) * size.head_hidden
    return state + size.head_blocks * 2 * (tokens + 1) * 2 * size.width**2


def head_velocity(size: ModelSize, readout: str, tokens: int) -> float:
    """One evaluation of the velocity over a remembered context."""
    steps, width = size.horizon, size.width
    encoder = 2 * steps * (size.action_dim + 2 * width) * width
    block = 2 * steps * (2 * width**2 + 2 * width * size.head_mlp) + 4 * steps * (tokens + 1) * width
    if readout == "per_token":
        block += 2 * steps * 4 * width**2 + 4 * steps**2 * width
        out = 2 * steps * (width + size.action_dim) * width
    else:
        out = 2 * (steps * width**2 + width * size.head_hidden + size.head_hidden * steps * size.action_dim)
    return encoder + size.head_blocks * block + out


def _passes(gradient_below: bool, trained: bool, checkpointed: bool) -> int:
    backward = 2 if trained else int(gradient_below)
    return 1 + backward + int(checkpointed and backward > 0)
