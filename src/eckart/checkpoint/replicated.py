"""A checkpoint with some of its layers repeated, as PEFT's `layer_replication` builds a deeper model from them.

Source: PEFT's `replicate_layers`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo
from eckart.checkpoint.model_config import MOST_LAYERS
from eckart.errors import MismatchError

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = re.compile(r"((?:[\w-]+\.)*?(?:layers|layer|h)\.)(\d{1,9})(\..+)")


class ReplicatedLayers:
    """A checkpoint under the names of a deeper model: see `Checkpoint`.

    Attributes:
        names: name in the deeper model -> name in the base.
    """

    def __init__(self, base: Checkpoint, names: Mapping[str, str], config: Mapping[str, Any]) -> None:
        self.source, self.folder, self.files = base.source, base.folder, base.files
        self.config = dict(config)
        self.kinds: Mapping[str, str] = {}
        self.tied: Mapping[str, str] = base.tied
        self.base, self.names = base, names
        self.tensors: Mapping[str, TensorInfo] = {
            new: replace(base.tensors[old], name=new) for new, old in names.items()
        }

    def read(self, name: str) -> "Tensor":
        """The complete tensor."""
        return self.base.read(self.names[name])

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor."""
        return self.base.read_bytes(self.names[name])

    def rows(self, name: str, start: int, stop: int) -> "Tensor":
        """Entries `start` to `stop` of the first dimension."""
        return self.base.rows(self.names[name], start, stop)

    def fingerprint(self) -> str:
        """A hex digest that changes when any file of the checkpoint changes."""
        return self.base.fingerprint()


def with_replicated_layers(base: Checkpoint, ranges: Sequence[Sequence[int]]) -> ReplicatedLayers:
    """The model whose layers are those of the base in these ranges, one range after another.

    Args:
        base: the checkpoint.
        ranges: `(start, stop)` of each.

    Raises:
        MismatchError: the base has no such layers, or is quantized.
    """
    numbered = {name: match for name in base.tensors if (match := _LAYER.fullmatch(name))}
    stacks = {match[1] for match in numbered.values()}
    count = 1 + max((int(match[2]) for match in numbered.values()), default=-1)
    if len(stacks) != 1 or hasattr(base, "schemes") or not _are_ranges(ranges, count):
        msg = (
            f"layer_replication repeats the layers {repr(ranges)[:60]}, but {base.source} is quantized, or has no "
            "single stack of that many layers"
        )
        raise MismatchError(msg)
    order = [layer for start, stop in ranges for layer in range(start, stop)]
    layers: dict[int, list[re.Match[str]]] = {}
    for match in numbered.values():
        layers.setdefault(int(match[2]), []).append(match)
    names = {name: name for name in base.tensors if name not in numbered}
    for new, layer in enumerate(order):
        names |= {f"{match[1]}{new}{match[3]}": match[0] for match in layers.get(layer, ())}
    return ReplicatedLayers(base, names, replicated_config(base.config, order, count))


def _are_ranges(ranges: Any, count: int) -> bool:
    """Whether these are ranges of `count` layers, not all empty, of a model that is not absurdly deep."""
    if not isinstance(ranges, Sequence) or isinstance(ranges, str):
        return False
    for pair in ranges:
        is_pair = isinstance(pair, Sequence) and len(pair) == 2 and all(type(number) is int for number in pair)
        if not is_pair or (pair[0] < pair[1] and not 0 <= pair[0] < pair[1] <= count):
            return False
    return 0 < sum(max(0, stop - start) for start, stop in ranges) <= MOST_LAYERS


def replicated_config(config: Mapping[str, Any], order: Sequence[int], count: int) -> dict[str, Any]:
    """A config with the number of layers in `order`, and with its lists of one entry a layer in that order."""
    lists = {key: value for key, value in config.items() if isinstance(value, list) and len(value) == count > 1}
    sizes = {key: len(order) for key in ("num_hidden_layers", "n_layer", "num_layers") if config.get(key) == count}
    layers = {key: [value[layer] for layer in order] for key, value in lists.items() if key.startswith("layer")}
    return {**config, **sizes, **layers}
