"""Every size of the model, by name: what a preset is, what it takes as input, and nothing about weights or training.

la4vla_1b   InternVL3-1B (InternViT-300M, the first 14 layers of Qwen2.5-0.5B) and the flow head of the released LA4VLA,
            sizes from FACTS 4.1: 775,198,640 parameters with the `flatten` readout
small       the same parts at about 60 M parameters, 112 px and the tiny tokenizer, for hypotheses on one GPU; random
            weights
tiny        the same parts at 3.6 M parameters and 112 px, for laptops, tests and the quickstart; random weights
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from la4vla.config import SIZES, ModelConfig
from la4vla.types import InputSpec, UserError


@dataclass(frozen=True)
class ModelSize:
    """Sizes of the vision tower, the language model and the flow head, with the token ids they agree on.

    image_size, patch_size  pixels, square
    shuffle                 side of the square of patches that becomes one token (pixel shuffle)
    layer_scale             what the vision blocks' output scales start from when the weights are random
    vocab                   rows of the embedding table
    kv_heads                shared key/value heads (grouped queries). The head has the width of the language model,
                            because its keys and values are projected from the context.
    head_hidden             the 1024 of the released state encoder and of the flatten readout
    """

    image_size: int
    patch_size: int
    shuffle: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    layer_scale: float
    vocab: int
    width: int
    llm_layers: int
    llm_heads: int
    kv_heads: int
    llm_mlp: int
    rope_theta: float
    max_tokens: int
    head_blocks: int
    head_heads: int
    head_mlp: int
    head_hidden: int
    horizon: int
    state_dim: int
    action_dim: int
    pad_token_id: int
    image_token_id: int

    @property
    def patches(self) -> int:
        """Patches of one image, without the CLS token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def image_tokens(self) -> int:
        """P, the tokens of one image in the language model."""
        return self.patches // self.shuffle**2

    @property
    def spec(self) -> InputSpec:
        return InputSpec(
            image_size=self.image_size,
            image_tokens=self.image_tokens,
            horizon=self.horizon,
            state_dim=self.state_dim,
            action_dim=self.action_dim,
            max_tokens=self.max_tokens,
            image_token_id=self.image_token_id,
            pad_token_id=self.pad_token_id,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> ModelSize:
        """The inverse of to_dict. Raises UserError when a size is missing or unknown."""
        names = {item.name for item in fields(ModelSize)}
        if odd := sorted(names ^ set(raw)):
            raise UserError(f"model sizes and this la4vla disagree about `{odd[0]}`; use the version that wrote them.")
        return ModelSize(**raw)


LA4VLA_1B = ModelSize(  # FACTS 4.1 unless said otherwise
    image_size=448,
    patch_size=14,
    shuffle=2,
    vision_width=1024,
    vision_layers=24,
    vision_heads=16,
    vision_mlp=4096,
    layer_scale=0.1,
    vocab=151_674,
    width=896,
    llm_layers=14,
    llm_heads=14,
    kv_heads=2,
    llm_mlp=4864,
    rope_theta=1e6,
    max_tokens=1024,  # the released fixed length; here a limit, rows are as long as they need to be
    head_blocks=8,
    head_heads=8,
    head_mlp=3584,
    head_hidden=1024,
    horizon=50,
    state_dim=24,
    action_dim=24,
    pad_token_id=151_643,
    image_token_id=151_667,
)

TINY = ModelSize(
    image_size=112,
    patch_size=14,
    shuffle=2,
    vision_width=128,
    vision_layers=4,
    vision_heads=4,
    vision_mlp=384,
    layer_scale=1.0,  # InternViT's 0.1 suits fine-tuning; from random weights it slows the first thousand steps
    vocab=1024,
    width=160,
    llm_layers=4,
    llm_heads=5,
    kv_heads=1,
    llm_mlp=448,
    rope_theta=1e4,  # rows have some tens of tokens
    max_tokens=192,  # three views and a long sentence
    head_blocks=4,
    head_heads=5,
    head_mlp=448,
    head_hidden=160,
    horizon=16,
    state_dim=8,
    action_dim=8,
    pad_token_id=0,
    image_token_id=3,
)

SMALL = replace(  # pictures, tokens, rows and chunks are tiny's, so both train on the same shards and compare
    TINY,
    vision_width=384,
    vision_layers=8,
    vision_heads=6,
    vision_mlp=1536,
    width=512,
    llm_layers=8,
    llm_heads=8,
    kv_heads=2,
    llm_mlp=1408,
    head_blocks=6,
    head_heads=8,
    head_mlp=1536,
    head_hidden=512,
)

PRESETS: dict[str, ModelSize] = {"tiny": TINY, "small": SMALL, "la4vla_1b": LA4VLA_1B}


def size_of(model: ModelConfig) -> ModelSize:
    """The preset's, with what the config sets of config.SIZES. Raises UserError for a preset that does not exist."""
    size, asked = preset(model.preset), asdict(model)
    return replace(size, **{name: asked[name] for name in SIZES if asked[name]})


def preset(name: str) -> ModelSize:
    """Raises UserError for a name that does not exist."""
    if name not in PRESETS:
        raise UserError(f"model.preset: `{name}` does not exist; use one of {', '.join(PRESETS)}.")
    return PRESETS[name]
