"""The flow head: context, robot state and a noisy chunk -> the velocity that turns noise into actions.

The blocks are those of FACTS 4.1: x += attention(LN1(x) -> context); x += FFN(LN2(x) + time). Deviations from the
release, all on purpose:
- `key_mask` has no default: pads never reach the head (the release attended to all 1024 positions, FACTS 5.1 B2);
- time and step positions are computed in fp32 and continuous, not looked up;
- the context's keys and values are projected once a chunk (`encode_context`), not once a flow step; loss and sampler
  share `velocity`;
- `per_token` readout: LN -> MLP on every chunk token, instead of squeezing the chunk through one vector. In the
  released blocks chunk tokens never meet, only its `flatten` readout mixes them. Without that, each step of a chunk
  would be drawn from its own marginal: half a chunk could go left around an obstacle and half right. So `per_token`
  blocks begin with self-attention over the chunk. It is causal (step i sees steps <= i): a clip may end inside a chunk,
  and with a causal mask the real steps see neither what lies past the end nor that there is an end, which the policy
  must not know. `flatten` cannot offer that.
- attention has separate q and kv projections, so that each is one module call (ZeRO-3 gathers by call); the release's
  `in_proj_weight` (3E, E) is q_proj.weight (E, E) over kv_proj.weight (2E, E), biases alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from la4vla.model import flow
from la4vla.model.presets import ModelSize


@dataclass(frozen=True)
class ContextCache:
    """What a chunk attends to: the context and, last, the state token.

    keys_values   one pair a block, each [B, heads, L + 1, width / heads]
    mask          bool [B, 1, 1, L + 1], True where the chunk may look
    embodiment_B  int64, number of each row's embodiment
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor
    embodiment_B: Tensor


class EmbodimentLinear(nn.Module):
    """A linear layer for each embodiment; a row goes through its own."""

    def __init__(self, embodiments: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(embodiments, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(embodiments, outputs))

    def forward(self, x_BNI: Tensor, embodiment_B: Tensor) -> Tensor:
        """[B, N, inputs] -> [B, N, outputs]."""
        weight_BIO = self.weight[embodiment_B].transpose(1, 2)
        return torch.baddbmm(self.bias[embodiment_B][:, None], x_BNI, weight_BIO)


def linear(inputs: int, outputs: int, embodiments: int) -> nn.Linear | EmbodimentLinear:
    """embodiments: 0 for one layer that all share."""
    return EmbodimentLinear(embodiments, inputs, outputs) if embodiments else nn.Linear(inputs, outputs)


def through(layer: nn.Linear | EmbodimentLinear, x_BNI: Tensor, embodiment_B: Tensor) -> Tensor:
    """[B, N, inputs] -> [B, N, outputs]."""
    return layer(x_BNI, embodiment_B) if isinstance(layer, EmbodimentLinear) else layer(x_BNI)


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be projected ahead of time. Dropout acts on the weights only."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width)
        self.kv_proj = nn.Linear(width, 2 * width)
        self.out_proj = nn.Linear(width, width)

    def keys_values(self, source_BLE: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = rearrange(self.kv_proj(source_BLE), "b l (two h d) -> two b h l d", two=2, h=self.heads)
        return keys, values

    def forward(self, x_BTE: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None, causal: bool) -> Tensor:
        """mask: bool, True where a query may look, broadcast to [B, heads, T, L]; None with `causal`."""
        query = rearrange(self.q_proj(x_BTE), "b t (h d) -> b h t d", h=self.heads)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, *keys_values, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.out_proj(rearrange(mixed, "b h t d -> b t (h d)"))


class HeadBlock(nn.Module):
    def __init__(self, size: ModelSize, dropout: float, self_attention: bool) -> None:
        super().__init__()
        if self_attention:
            self.norm0 = nn.LayerNorm(size.width)
            self.self_attn = Attention(size.width, size.head_heads, dropout)
        self.self_attention = self_attention
        self.norm1 = nn.LayerNorm(size.width)
        self.attn = Attention(size.width, size.head_heads, dropout)
        self.norm2 = nn.LayerNorm(size.width)
        self.ff = nn.Sequential(nn.Linear(size.width, size.head_mlp), nn.GELU(), nn.Linear(size.head_mlp, size.width))

    def forward(self, x_BTE: Tensor, time_B1E: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        if self.self_attention:
            normed = self.norm0(x_BTE)
            x_BTE = x_BTE + self.self_attn(normed, self.self_attn.keys_values(normed), mask=None, causal=True)
        x_BTE = x_BTE + self.attn(self.norm1(x_BTE), keys_values, mask=mask, causal=False)
        return x_BTE + self.ff(self.norm2(x_BTE) + time_B1E)


class ActionEncoder(nn.Module):
    """Noisy actions -> one token a step: Linear, ReLU, + step position, Linear, ReLU, Linear."""

    def __init__(self, size: ModelSize, embodiments: int) -> None:
        super().__init__()
        self.w1 = linear(size.action_dim, size.width, embodiments)
        self.w2 = nn.Linear(size.width, size.width)
        self.w3 = nn.Linear(size.width, size.width)

    def forward(self, x_BTA: Tensor, embodiment_B: Tensor) -> Tensor:
        hidden = F.relu(through(self.w1, x_BTA, embodiment_B))
        steps_T = torch.arange(x_BTA.shape[1], device=x_BTA.device)
        hidden = hidden + flow.sinusoid(steps_T, hidden.shape[-1]).to(hidden.dtype)
        return self.w3(F.relu(self.w2(hidden)))


class StateEncoder(nn.Module):
    """Robot state -> the one state token that joins the context."""

    def __init__(self, size: ModelSize, embodiments: int) -> None:
        super().__init__()
        self.fc1 = linear(size.state_dim, size.head_hidden, embodiments)
        self.fc2 = nn.Linear(size.head_hidden, size.width)

    def forward(self, state_BS: Tensor, embodiment_B: Tensor) -> Tensor:
        hidden_BE = through(self.fc1, state_BS[:, None], embodiment_B)[:, 0]
        return self.fc2(F.relu(hidden_BE))


class FlattenReadout(nn.Module):
    """The released one: the whole chunk through one vector of the head's width. All embodiments share it."""

    def __init__(self, size: ModelSize, embodiments: int) -> None:
        super().__init__()
        assert not embodiments, "config.train refuses it"
        self.horizon = size.horizon
        self.pool = nn.Linear(size.horizon * size.width, size.width)
        self.fc1 = nn.Linear(size.width, size.head_hidden)
        self.fc2 = nn.Linear(size.head_hidden, size.horizon * size.action_dim)

    def forward(self, x_BTE: Tensor, embodiment_B: Tensor) -> Tensor:
        pooled = self.pool(rearrange(x_BTE, "b t e -> b (t e)"))
        return rearrange(self.fc2(F.relu(self.fc1(pooled))), "b (t a) -> b t a", t=self.horizon)


class PerTokenReadout(nn.Module):
    def __init__(self, size: ModelSize, embodiments: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size.width, size.width)
        self.fc2 = linear(size.width, size.action_dim, embodiments)

    def forward(self, x_BTE: Tensor, embodiment_B: Tensor) -> Tensor:
        return through(self.fc2, F.gelu(self.fc1(x_BTE)), embodiment_B)


READOUTS = {"flatten": FlattenReadout, "per_token": PerTokenReadout}


class FlowHead(nn.Module):
    """Dropout draws from torch's default generator of the device; the caller seeds it. Everything else is
    deterministic.

    embodiments: how many have projections of their own from state and action, and to actions (the layers that touch the
    robot's numbers; Evo-1's categories, FACTS 4.1); 0: all share one.
    """

    def __init__(self, size: ModelSize, readout: str, dropout: float, embodiments: int) -> None:
        super().__init__()
        self.action_encoder = ActionEncoder(size, embodiments)
        self.state_encoder = StateEncoder(size, embodiments)
        self.blocks = nn.ModuleList(HeadBlock(size, dropout, readout == "per_token") for _ in range(size.head_blocks))
        self.norm_out = nn.LayerNorm(size.width)
        self.readout = READOUTS[readout](size, embodiments)

    def encode_context(
        self,
        context_BLE: Tensor,
        key_mask_BL: Tensor,
        state_BS: Tensor,
        state_mask_BS: Tensor,
        embodiment_B: Tensor,
    ) -> ContextCache:
        """Keys and values of every block, from `context`. Once a chunk."""
        source_BLE, mask_BL = self.context(context_BLE, key_mask_BL, state_BS, state_mask_BS, embodiment_B)
        keys_values = tuple(block.attn.keys_values(source_BLE) for block in self._blocks())
        return ContextCache(keys_values, mask_BL[:, None, None, :], embodiment_B)

    def context(
        self,
        context_BLE: Tensor,
        key_mask_BL: Tensor,
        state_BS: Tensor,
        state_mask_BS: Tensor,
        embodiment_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """All that the blocks attend to, the state token behind the context, and which of it is seen (bool).

        key_mask_BL: bool, False keys are never seen. state_BS: float32; dims outside state_mask_BS count as 0.
        embodiment_B: int64, number of each row's embodiment.
        """
        dtype = self.state_encoder.fc1.weight.dtype
        state_BE = self.state_encoder(state_BS.masked_fill(~state_mask_BS, 0.0).to(dtype), embodiment_B)
        source_BLE = torch.cat([context_BLE, state_BE[:, None].to(context_BLE.dtype)], dim=1)
        return source_BLE, F.pad(key_mask_BL, (0, 1), value=True)

    def velocity(self, x_BTA: Tensor, time_B: Tensor, cache: ContextCache) -> Tensor:
        """fp32 [B, T, A]. x_BTA: fp32 point on the path. time_B: fp32 in [0, 1]."""
        assert x_BTA.dtype == time_B.dtype == torch.float32
        dtype = self.norm_out.weight.dtype
        time_B1E = flow.sinusoid(time_B * flow.TIME_SCALE, self.norm_out.normalized_shape[0])[:, None].to(dtype)
        x_BTE = self.action_encoder(x_BTA.to(dtype), cache.embodiment_B)
        for block, keys_values in zip(self._blocks(), cache.keys_values, strict=True):
            x_BTE = block(x_BTE, time_B1E, keys_values, cache.mask)
        return self.readout(self.norm_out(x_BTE), cache.embodiment_B).float()

    def _blocks(self) -> list[HeadBlock]:
        return [block for block in self.blocks if isinstance(block, HeadBlock)]
