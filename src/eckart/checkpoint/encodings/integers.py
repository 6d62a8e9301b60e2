"""Integer codes of few bits: packed into words, and scaled by groups of a row."""

from typing import TYPE_CHECKING

from eckart.checkpoint.encodings.encoded import StoredModule
from eckart.checkpoint.encodings.scales import times

if TYPE_CHECKING:
    from torch import Tensor


def unpacked(words: "Tensor", bits: int, count: int) -> "Tensor":
    """The codes in rows of packed integers.

    Args:
        words: shape `(rows, words)`, any integers; each row is one stream of bits, least significant first.
        bits: of a code, 1 to 8.
        count: codes in a row.

    Returns:
        uint8, shape `(rows, count)`.
    """
    import torch

    if not len(words):
        return torch.empty((0, count), dtype=torch.uint8)
    data = words.contiguous().view(torch.uint8)
    if bits == 8:
        return data[:, :count]
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        return (data[..., None] >> shifts).bitwise_and_(2**bits - 1).flatten(1)[:, :count]
    # Eight codes fill `bits` bytes.
    data = torch.nn.functional.pad(data, (0, -data.shape[1] % bits)).unfold(1, bits, bits)
    streams = (data.long() << (8 * torch.arange(bits))).sum(-1, keepdim=True)
    return (streams >> (bits * torch.arange(8))).bitwise_and_(2**bits - 1).to(torch.uint8).flatten(1)[:, :count]


def dequantized(
    module: StoredModule,
    leaf: str,
    codes: "Tensor",
    scale: "Tensor",
    zero: "Tensor | None",
    *,
    index: "Tensor | None" = None,
) -> "Tensor":
    """(code - zero) · scale in float32.

    Args:
        module: the module that stores the scales.
        leaf: their name in it.
        codes: shape `(rows, columns)`.
        scale: shape `(rows, groups)`; consecutive columns share one, or those with the same `index`.
        zero: as `scale`; None for 0.
        index: the group of each column; None if groups are consecutive.

    Raises:
        FileFormatError: a scale is NaN, Inf or zero.
    """
    import torch

    groups = scale.shape[1]
    values = codes.to(torch.float32)
    scale = scale.to(torch.float32)
    if index is not None:
        values = values if zero is None else values.sub_(zero.to(torch.float32)[:, index])
        return times(module, leaf, values, scale[:, index])
    values = values.unflatten(1, (groups, codes.shape[1] // groups))
    values = values if zero is None else values.sub_(zero.to(torch.float32)[..., None])
    return times(module, leaf, values, scale[..., None]).flatten(1)


def group_index(module: StoredModule, leaf: str, inputs: int, groups: int) -> "Tensor | None":
    """The group of each input, which a module may store; None if groups are consecutive.

    Raises:
        FileFormatError: a group does not exist.
    """
    import torch

    if leaf not in module.leaves:
        return None
    index = module.read(leaf).long()
    if torch.equal(index, torch.arange(inputs) // (inputs // groups)):
        return None
    if not bool(((index >= 0) & (index < groups)).all()):
        fault = f"has groups from {int(index.min())} to {int(index.max())}, expected 0 to {groups - 1}"
        raise module.refuse(leaf, fault)
    return index
