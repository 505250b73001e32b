"""DeepSpeed ZeRO 0-3 behind the engine seam, with its traps for mixed kinds defused. Written against 0.19.8.

fp32 parameters with bf16 autocast inside the forward (DeepSpeed's `torch_autocast`, gradients summed in fp32), not
DeepSpeed's `bf16` mode: every stage then holds fp32 masters, a non-finite norm is skipped by DeepSpeed's own overflow
logic on all ranks together, and both engines compute the same numbers.

Traps
    stage 3 copies a gradient into its buffer in the first micro-batch of a step and adds in later ones, so that a
    parameter first touched by a later micro-batch (vision, after LA) is added to what the last step left: the
    buffer is zeroed at every step.
    stage 1 with `overlap_comm` reduces in hooks of the last micro-batch only: overlap stays off.
    stages 1 and 2 before 0.19.8 take a step with a non-finite norm and report a finite one: such versions are refused.
    its copy of the process group would wait as long as torch likes, not `engine.timeout_s`: it is made here.
    stage 0 neither reports a norm nor skips a non-finite step: both are done here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.nn import functional

from la4vla.config import TrainConfig
from la4vla.train import ema, optim
from la4vla.train.dist import World
from la4vla.train.engines.engine import ReadAverage, ReadMoments
from la4vla.train.optim import Rules
from la4vla.types import UserError

OLDEST = Version("0.19.8")
BUCKET_ELEMENTS = 50_000_000  # 200 MB of fp32 a reduction


class DeepSpeedEngine:
    def __init__(self, module: nn.Module, config: TrainConfig, rules: Rules, world: World) -> None:
        deepspeed = _import_deepspeed(world)
        self.module = module.to(world.device)
        self._deepspeed = deepspeed
        self._world = world
        self._stage = config.engine.zero_stage
        self._clip_norm = config.optim.clip_norm
        self._ema_decay = config.optim.ema_decay
        self._parameters = optim.trainable(self.module)
        self._optimizer = optim.build(self._parameters, config.optim, rules)
        groups = deepspeed.utils.groups
        if groups._WORLD_GROUP is None:  # its copy of the process group, to which it would give a timeout of its own
            groups._WORLD_GROUP = torch.distributed.new_group(timeout=timedelta(seconds=config.engine.timeout_s))
        self._engine: Any = deepspeed.initialize(
            model=self.module,
            optimizer=self._optimizer,
            config=deepspeed_config(config, world.size, sum(p.numel() for p in self.module.parameters())),
            dist_init_required=False,
        )[0]
        optim.fill_state(self._optimizer, self.masters())
        if self._ema_decay:
            ema.begin(self._optimizer, self.masters())
        if self._stage in (1, 2):
            # Ties each parameter to its piece of the state; DeepSpeed itself does it after the first update.
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self._engine(batch)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; the seam promises sums.
        self._engine.backward(loss * self._world.size)

    def step(self, rates: Mapping[str, float]) -> Tensor:
        optim.set_rates(self._engine.optimizer.param_groups, rates)
        norm = self._step()
        if self._ema_decay:
            ema.update(self._optimizer, self.masters(), self._ema_decay, norm)
        return norm

    def weights(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        parameters, state = dict(self.module.named_parameters(remove_duplicate=False)), self.module.state_dict()
        for name in names:
            if name in parameters and self._stage == 3:
                with self._deepspeed.zero.GatheredParameters([parameters[name]]):
                    yield name, parameters[name].detach().clone()
            else:
                yield name, state[name]

    def moments(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for name, parameter in self._parameters.items():
            first, second = (self._whole(parameter, key) for key in optim.MOMENTS)
            yield name, first, second

    def averages(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._parameters.items() if self._ema_decay else ():
            yield name, self._whole(parameter, ema.KEY)

    def updates(self) -> int:
        return optim.updates_done(self._optimizer)

    def load_moments(self, read: ReadMoments, updates: int) -> None:
        for name, parameter in self._parameters.items():
            for key, value in zip(optim.MOMENTS, read(name), strict=True):
                self._set(parameter, key, value)
        optim.set_updates_done(self._optimizer, updates)

    def load_averages(self, read: ReadAverage) -> None:
        for name, parameter in self._parameters.items():
            self._set(parameter, ema.KEY, read(name))

    def masters(self) -> list[Tensor]:
        if self._stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        if self._stage > 0:
            return list(self._engine.optimizer.single_partition_of_fp32_groups)
        return list(self._parameters.values())

    def close(self) -> None:
        self._engine.destroy()

    def _step(self) -> Tensor:
        """The update, and the global norm before clipping; inf after a skipped step."""
        if self._stage == 0:
            norm = optim.clip_and_guard(self._optimizer, list(self._parameters.values()), self._clip_norm)
            self._engine.step()
            return norm
        self._engine.step()
        if self._stage == 3:
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()
        norm = self._engine.get_global_grad_norm()  # inf, a Python float, after a skipped step
        return torch.as_tensor(norm, dtype=torch.float32, device=self._world.device)

    def _whole(self, parameter: Any, key: str) -> Tensor:
        """One tensor of a parameter's state, gathered. All ranks call it."""
        from deepspeed.utils import safe_get_full_optimizer_state as get_full

        if self._stage == 0:
            return self._optimizer.state[parameter][key]
        whole = get_full(parameter, key)
        assert whole is not None
        return whole

    def _set(self, parameter: Any, key: str, value: Tensor) -> None:
        """One tensor of a parameter's state, from a whole one."""
        from deepspeed.utils import safe_set_full_optimizer_state as set_full
        from deepspeed.utils import safe_set_local_optimizer_state as set_local

        value = value.to(self._world.device)
        if self._stage == 0:
            self._optimizer.state[parameter][key].copy_(value)
        elif self._stage == 3:
            set_local(parameter, self._own_part(parameter, value), key)
        else:
            set_full(parameter, value, key)

    def _own_part(self, parameter: Any, value: Tensor) -> Tensor:
        """This rank's piece of a whole tensor under stage 3, padded at the end. (DeepSpeed's own setter for whole
        tensors fails where the ranks do not divide the size.)"""
        size = parameter.ds_tensor.numel()
        padded = functional.pad(value.flatten(), (0, size * self._world.size - value.numel()))
        return padded.narrow(0, size * self._world.rank, size)


def deepspeed_config(config: TrainConfig, world_size: int, parameters: int) -> dict[str, Any]:
    """The dict that DeepSpeed gets. Batch sizes are placeholders: the loop owns micro-batches and accumulation."""
    stage = config.engine.zero_stage
    # No larger than the model (buffers are allocated whole), and aligned: DeepSpeed insists on a multiple of 2.
    bucket = min(BUCKET_ELEMENTS, -(-parameters // 1024) * 1024)
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Its own throughput timer waits for the device at every micro-batch.
        "timers": {"throughput": {"enabled": False}},
        "gradient_clipping": config.optim.clip_norm if stage else 0.0,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            # Small parameters stay whole: gathering them one by one costs more than they weigh.
            "stage3_param_persistence_threshold": min(100_000, parameters // 100),
        },
        "torch_autocast": {
            "enabled": config.engine.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


def _import_deepspeed(world: World) -> Any:
    """DeepSpeed, for the device this run is on, without its hundred lines of INFO."""
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # It reads these names instead of asking the process group; outside torchrun nobody has set them.
    for name, value in (("RANK", world.rank), ("LOCAL_RANK", world.local_rank), ("WORLD_SIZE", world.size)):
        os.environ[name] = str(value)
    logging.disable(logging.INFO)
    import deepspeed
    from deepspeed.utils import logger

    logging.disable(logging.NOTSET)
    if Version(deepspeed.__version__) < OLDEST:
        raise UserError(
            f"DeepSpeed {deepspeed.__version__} takes non-finite steps in ZeRO 1 and 2; pip install "
            f'"deepspeed>={OLDEST}", or set engine.name=plain.'
        )
    logger.setLevel(logging.WARNING)
    if world.device.type == "cpu":
        # Its shared-memory all-reduce is compiled at first use (a minute, and a compiler); gloo does.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
