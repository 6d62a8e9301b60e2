"""A fine-tune whose vocabulary has another size: the rows that both models have, and those of new tokens."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from eckart.checkpoint import Checkpoint
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.tying import is_vocabulary

if TYPE_CHECKING:
    from torch import Tensor


def resized_tokens(base: Checkpoint, tuned: Checkpoint) -> dict[str, range]:
    """Embeddings and output layers that have another number of rows in a fine-tune, and the tokens in only one model.

    A weight that one of the models shares with another counts only if both store it.
    """
    result = {}
    for name, new in tuned.tensors.items():
        old = base.tensors.get(name)
        if old and is_vocabulary(name) and len(old.shape) == len(new.shape) == 2 and old.shape[1] == new.shape[1]:
            result[name] = range(*sorted((old.shape[0], new.shape[0])))
    return {name: tokens for name, tokens in result.items() if tokens}


def with_vocabulary_of(base: Checkpoint, tuned: Checkpoint) -> Checkpoint:
    """The fine-tune with as many tokens as the base: without new ones, and with the base's rows for those it lacks."""
    sizes = {name: base.tensors[name].shape for name in resized_tokens(base, tuned)}
    if not sizes:
        return tuned
    infos = {name: replace(tuned.tensors[name], shape=shape) for name, shape in sizes.items()}
    computed: dict[str, Callable[[int, int], Tensor]] = {name: partial(_rows, base, tuned, name) for name in sizes}
    return DerivedCheckpoint(tuned, {**tuned.tensors, **infos}, computed=computed)


def _rows(base: Checkpoint, tuned: Checkpoint, name: str, start: int, stop: int) -> "Tensor":
    import torch

    end = max(start, min(stop, tuned.tensors[name].shape[0]))
    parts = [tuned.rows(name, start, end)] if end > start else []
    parts += [base.rows(name, end, stop).to(tuned.tensors[name].dtype.torch)] if stop > end else []
    return torch.cat(parts)
