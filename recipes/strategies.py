"""How processes share a training run: DDP, and FSDP2, whose checkpoints any number of processes can read."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from samgraft.errors import ConfigError
from samgraft.recipes.config import TrainConfig
from samgraft.recipes.ranks import whole_state
from samgraft.recipes.tasks import SegmentationTask


class GraftedDDP(DDPStrategy):
    """DDP that looks for parameters without a gradient only where there are some, and leaves buffers alone.

    Buffers are frozen, and exchanging them in every forward pass would tie together processes that validate different
    cases.
    """

    def __init__(self) -> None:
        """Choose what does not depend on the network."""
        super().__init__(broadcast_buffers=False)

    def configure_ddp(self) -> None:
        """Wrap the task."""
        task = self.lightning_module
        self._ddp_kwargs["find_unused_parameters"] = isinstance(task, SegmentationTask) and task.leaves_unused()
        super().configure_ddp()


class GraftedFSDP(ModelParallelStrategy):
    """FSDP2 (``fully_shard``, called by the task's ``configure_model``), on GPUs or the CPU.

    Checkpoints hold whole tensors of the attached parts and of the optimiser, as those of one process do. Lightning's
    own way would ask for every frozen tensor, and would not find grafts, which the module tree shows twice.
    """

    def __init__(self, world: int) -> None:
        """Split over ``world`` processes."""
        super().__init__(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning hands the optimiser's state over."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors of the attached parts, on every process."""
        return dict(whole_state(self._task().state_dict()))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """State of the optimiser with whole tensors, on every process."""
        state = getattr(optimizer, "optimizer", optimizer).state_dict()
        whole = {number: _whole_values(values) for number, values in state["state"].items()}
        return {**state, "state": whole}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; every process takes its part of it below."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy this process's part of the attached tensors; the task has compared their names."""
        del strict
        with torch.no_grad():
            for name, own in self._task().state_dict().items():
                own.copy_(_like(own, checkpoint["state_dict"][name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's part of the optimiser's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
            owners = {n: p for saved, own in groups for n, p in zip(saved["params"], own["params"], strict=True)}
            parts = {
                number: {key: _like(owners[number], value) for key, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})

    def _task(self) -> torch.nn.Module:
        if self.lightning_module is None:
            raise RuntimeError("the strategy has no task yet; call trainer.fit")
        return self.lightning_module


def _whole_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in values.items()}


def _like(own: Tensor, value: Any) -> Any:
    """``value`` split as ``own`` is, where it is a tensor of that shape."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def choose_strategy(train: TrainConfig) -> Strategy | str:
    """How Lightning shares the work between processes.

    Raises:
        ConfigError: more processes than GPUs.
    """
    gpus = torch.cuda.device_count()
    if train.accelerator in ("auto", "gpu", "cuda") and 0 < gpus < train.devices:
        raise ConfigError(
            f"train.devices is {train.devices}; this machine has {gpus} GPUs; ask for at most those, or add "
            "--train.accelerator cpu"
        )
    if train.strategy == "fsdp":
        return GraftedFSDP(train.world)
    if train.strategy == "ddp" or train.world > 1:
        return GraftedDDP()
    return "auto"
