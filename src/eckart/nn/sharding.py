"""A model's parameters spread over several devices with FSDP2; each layer is gathered while it computes."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from torch import nn

from eckart.nn.quantized import Nf4Linear

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard_model(model: nn.Module, mesh: "DeviceMesh", *, replicated: Collection[nn.Parameter] = ()) -> None:
    """Shard the parameters of a model over a mesh, in place: one unit per layer, and one for all others.

    The last unit (embeddings, final norm, head) stays gathered from its forward to its backward pass, so a loss may
    use the head's weight as long as it is computed within the model's own call. Weights in NF4 are sharded as codes.

    Args:
        model: a model of transformers, whose `_no_split_modules` are the layers; of another, the entries of its lists
            of modules.
        mesh: a one-dimensional mesh; the shards are moved to its device.
        replicated: parameters that every device keeps whole, such as the factors of adapters.
    """
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if isinstance(module, Nf4Linear):
            module.as_parameters()
    ignored = set(replicated)
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, ignored_params=ignored & set(layer.parameters()))
    fully_shard(model, mesh=mesh, ignored_params=ignored)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    named = [module for module in model.modules() if type(module).__name__ in kinds and module is not model]
    if named:
        yield from (each for each in named if not any(each is not other and each in other.modules() for other in named))
        return
    yield from (child for each in model.modules() if isinstance(each, nn.ModuleList) for child in each)
