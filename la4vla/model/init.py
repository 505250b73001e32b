"""Random first weights: one rule for every tensor, drawn from rng.RngUse.INIT by parameter name, so that a seed is a
model.

linear and convolution weights   Xavier uniform, per matrix (a packed key/value projection counts as two matrices)
embedding table                  normal, std 0.02 (Qwen2's)
position embeddings of the ViT   2-d sinusoids (trainable): a small model cannot afford to learn where a patch is
CLS token                        normal, std 0.02
layer scales                     the preset's `layer_scale`
norm weights 1, biases 0
"""

from __future__ import annotations

import math

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers.models.internvl.modeling_internvl import InternVLVisionEmbeddings, InternVLVisionLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from la4vla.model.flow import sinusoid
from la4vla.model.head import Attention, EmbodimentLinear
from la4vla.rng import RngUse, torch_generator

EMBEDDING_STD = 0.02


@torch.no_grad()
def init_weights(root: nn.Module, name: str, seed: int) -> None:
    """Sets every parameter below `root`. name: the root's place in the policy, "" for the policy itself."""
    done: set[int] = set()
    for path, module in root.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            generator = torch_generator(seed, RngUse.INIT, _join(name, path, key))
            _set(module, key, parameter, generator)
            done.add(id(parameter))
        if isinstance(module, Attention):
            assert id(module.kv_proj.weight) not in done  # parents come first; the packed matrix is set below
    for path, module in root.named_modules():
        if isinstance(module, Attention):
            for index, half in enumerate(module.kv_proj.weight.chunk(2)):
                _xavier(half, torch_generator(seed, RngUse.INIT, _join(name, path, f"kv_proj.{index}")))
    assert done == {id(parameter) for parameter in root.parameters()}


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _set(module: nn.Module, key: str, parameter: Tensor, generator: torch.Generator) -> None:
    if isinstance(module, InternVLVisionLayer):
        parameter.fill_(module.attention.config.layer_scale_init_value)
    elif isinstance(module, InternVLVisionEmbeddings) and key == "position_embeddings":
        parameter.copy_(_positions_2d(parameter))
    elif isinstance(module, nn.Embedding | InternVLVisionEmbeddings):
        parameter.normal_(0.0, EMBEDDING_STD, generator=generator)
    elif isinstance(module, nn.LayerNorm | Qwen2RMSNorm):
        parameter.fill_(1.0 if key == "weight" else 0.0)
    elif isinstance(module, EmbodimentLinear):
        for one in parameter:  # a matrix or a bias for each embodiment
            if key == "weight":
                _xavier(one, generator)
            else:
                one.zero_()
    elif isinstance(module, nn.Linear | nn.Conv2d):
        if key == "weight":
            _xavier(parameter, generator)
        else:
            parameter.zero_()
    else:
        raise AssertionError(f"no rule for the first value of {type(module).__name__}.{key}")


def _xavier(weight: Tensor, generator: torch.Generator) -> None:
    fan_out, fan_in = weight.shape[0], weight[0].numel()
    bound = math.sqrt(6.0 / (fan_in + fan_out))
    weight.uniform_(-bound, bound, generator=generator)


def _positions_2d(table: Tensor) -> Tensor:
    """[1, 1 + patches, width]: CLS 0, then row and column of each patch, half of the width each."""
    side, width = math.isqrt(table.shape[1] - 1), table.shape[2]
    axis = sinusoid(torch.arange(side), width // 2)
    rows, columns = repeat(axis, "r e -> r c e", c=side), repeat(axis, "c e -> r c e", r=side)
    patches = rearrange(torch.cat([rows, columns], dim=-1), "r c e -> (r c) e")
    return torch.cat([torch.zeros(1, width), patches])[None]
