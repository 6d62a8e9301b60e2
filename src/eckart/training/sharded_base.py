"""A frozen base spread over the processes that train together, where accelerate's configuration asks for FSDP.

accelerate would shard the factors too. They are small: every process keeps them whole and DDP averages their gradients,
so that the optimizer, checkpoints and the saved adapter are those of one process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from eckart.errors import OptionError
from eckart.nn import adapted_modules
from eckart.nn.sharding import shard_model
from eckart.training import rundir

if TYPE_CHECKING:
    import torch

_ASKED, _OFFLOAD = "ACCELERATE_USE_FSDP", "FSDP_OFFLOAD_PARAMS"  # variables that accelerate launch sets
NOTE = "how the updates grow is not recorded while the base is sharded"


@contextmanager
def taking_over_fsdp(*, is_live: bool) -> Iterator[bool]:
    """Inside the block, accelerate and transformers no longer see that FSDP was asked for.

    Yields:
        whether the base is to be sharded: FSDP was asked for, and there are several processes.

    Raises:
        OptionError: the model is a live one, or parameters are to be kept on the CPU.
    """
    asked = os.environ.get(_ASKED, "").lower() in ("1", "true")
    if asked and is_live:
        msg = "FSDP shards a model that train loads itself: give its SOURCE instead of a live model"
        raise OptionError(msg)
    if asked and os.environ.get(_OFFLOAD, "").lower() in ("1", "true"):
        msg = "FSDP that keeps parameters on the CPU is not supported: set fsdp_offload_params to false"
        raise OptionError(msg)
    before = os.environ.pop(_ASKED, None)
    try:
        yield asked and rundir.processes() > 1
    finally:
        if before is not None:
            os.environ[_ASKED] = before


def shard_base(model: nn.Module, device: "torch.device") -> None:
    """Shard everything but what trains and the factors over all processes, which are connected already.

    Where any of them has parameters on the meta device, all get the values of the first.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    first = _sent(model)
    factors = [p for module in adapted_modules(model).values() for p in module.adapters.parameters()]
    trained = [p for p in model.parameters() if p.requires_grad]
    shard_model(model, init_device_mesh(device.type, (rundir.processes(),)), replicated=[*factors, *trained])
    if first is not None:
        _receive(model, first, device)
    sharded = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, sharded)


def _sent(model: nn.Module) -> "dict[str, Any] | None":
    """The state that the first process sends, which is empty in others; None if all have their own."""
    import torch.distributed as dist

    waiting: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(waiting, any(parameter.is_meta for parameter in model.parameters()))
    if not any(waiting):
        return None
    for module in adapted_modules(model).values():
        if waiting[dist.get_rank()]:
            module.adapters.to_empty(device="cpu")
    return model.state_dict() if dist.get_rank() == 0 else {}


def _receive(model: nn.Module, first: "dict[str, Any]", device: "torch.device") -> None:
    """Give every process its shards, and what is not sharded, of the state of the first."""
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    # Not `to_empty`, which would also empty the buffers that no state has.
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    set_model_state_dict(model, first, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def require_same(facts: dict[str, object]) -> None:
    """Refuse processes that were started with different options, model or data.

    Raises:
        OptionError: the message lists the differences from the first process.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    everyone: list[dict[str, object]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, facts)
    faults = {f"process {rank}: {name}" for rank, each in enumerate(everyone) for name in differing(each, everyone[0])}
    if faults:
        msg = "the processes that train together were started with different options"
        raise OptionError.listing(msg, sorted(faults))


def differing(facts: dict[str, object], first: dict[str, object]) -> list[str]:
    """What a process has that the first does not."""
    return [
        fault.replace(", then ", ", process 0 has ").replace("now ", "") for fault in rundir.differences(facts, first)
    ]
