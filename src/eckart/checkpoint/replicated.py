"""A checkpoint with some of its layers repeated, as PEFT's `layer_replication` builds a deeper model from them.

Source: PEFT's `replicate_layers`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.model_config import MOST_LAYERS
from eckart.errors import MismatchError

_LAYER = re.compile(r"((?:[\w-]+\.)*?(?:layers|layer|h)\.)(\d{1,9})(\..+)")


def with_replicated_layers(base: Checkpoint, ranges: Sequence[Sequence[int]]) -> DerivedCheckpoint:
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
    if len(stacks) != 1 or not _are_ranges(ranges, count):
        msg = (
            f"layer_replication repeats the layers {repr(ranges)[:60]}, but {base.source} has no single stack of "
            "that many layers"
        )
        raise MismatchError(msg)
    order = [layer for start, stop in ranges for layer in range(start, stop)]
    layers: dict[int, list[re.Match[str]]] = {}
    for match in numbered.values():
        layers.setdefault(int(match[2]), []).append(match)
    names = {name: name for name in base.tensors if name not in numbered}
    for new, layer in enumerate(order):
        names |= {f"{match[1]}{new}{match[3]}": match[0] for match in layers.get(layer, ())}
    tensors = {new: replace(base.tensors[old], name=new) for new, old in names.items()}
    return DerivedCheckpoint(base, tensors, renamed=names, config=replicated_config(base.config, order, count))


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
