"""The loss of a group: symmetric InfoNCE, and a term that pushes its pairs apart (FACTS 2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LARGEST_SCALE = 100.0  # of cosines, CLIP's limit


def group_loss(motion_GD: Tensor, sentence_GD: Tensor, log_scale: Tensor, kept_G: Tensor, diversity: float) -> Tensor:
    """fp32 0-d, the mean over the pairs of a group that count.

    motion_GD, sentence_GD  embeddings of length 1; row i of both is one pair
    log_scale               logarithm of what cosines are multiplied with, [1]; above LARGEST_SCALE it does not count
    kept_G                  bool, the pairs that count; the others are neither right nor wrong answers
    diversity               weight of the mean positive cosine between different motions and different sentences
    """
    cosines_GG = motion_GD @ sentence_GD.T
    logits_GG = cosines_GG * log_scale.clamp(max=math.log(LARGEST_SCALE)).exp()
    pairs = kept_G.sum().clamp(min=1)
    right = torch.arange(len(kept_G), device=kept_G.device)
    contrast = torch.zeros((), device=kept_G.device)
    for way_GG in (logits_GG, logits_GG.T):
        among_GG = way_GG.masked_fill(~kept_G[None, :] & (right[:, None] != right[None, :]), -torch.inf)
        each_G = functional.cross_entropy(among_GG, right, reduction="none")
        contrast = contrast + 0.5 * torch.where(kept_G, each_G, 0.0).sum() / pairs
    apart_GG = kept_G[:, None] & kept_G[None, :] & (right[:, None] != right[None, :])
    alike_GG = (motion_GD @ motion_GD.T).clamp(min=0) + (sentence_GD @ sentence_GD.T).clamp(min=0)
    spread = torch.where(apart_GG, alike_GG, 0.0).sum() / (pairs * (pairs - 1)).clamp(min=1)
    return contrast + diversity * spread
