"""The memory of tensors over time: every storage that a program makes, from its birth to its end."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(slots=True)
class Life:
    """One storage.

    Attributes:
        nbytes: that it takes, rounded up to what an allocator hands out.
        born: when, on the log's clock, which counts births and ends.
        origin: what the log was told to remember of its birth.
        use: what it is for, where that was told.
        died: when, or None while it is alive.
    """

    nbytes: int
    born: int
    origin: Any
    use: Any = None
    died: int | None = None

    def is_alive(self, at: int) -> bool:
        """Whether the storage was there right after this tick of the clock."""
        return self.born <= at and (self.died is None or self.died > at)


class StorageLog(TorchDispatchMode):
    """Inside the block, writes down the storages of all that torch computes, on tensors with data or without.

    Memory that an operator takes for itself, and gives back before it returns, is not seen.

    Attributes:
        lives: all storages, in the order of their births.
        clock: births and ends so far.
        now: bytes that are alive.
        highest: most bytes that were alive at once since `restart`.
        at: when that was, on the clock.

    Args:
        granularity: bytes are rounded up to multiples of this.
        origin: called at each birth; what it returns is remembered.
    """

    def __init__(self, *, granularity: int = 1, origin: Callable[[], Any] = lambda: None) -> None:
        super().__init__()
        self.lives: list[Life] = []
        self.clock = self.now = self.highest = self.at = 0
        self._granularity, self._origin = granularity, origin
        self._open: dict[int, tuple[weakref.ref[torch.UntypedStorage], Life]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and note what it gives."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.life_of(leaf)
        return result

    def life_of(self, tensor: Tensor) -> Life:
        """The life of a tensor's storage, which begins now if the log has not met it."""
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, -(-storage.nbytes() // self._granularity) * self._granularity
        known = self._open.get(key)
        if known is not None and known[0]() is storage:
            if known[1].nbytes == nbytes:
                return known[1]
            self._end(key)  # resized: another piece of memory
        life = Life(nbytes, self.clock, self._origin())
        self.clock += 1
        self.now += nbytes
        if self.now > self.highest:
            self.highest, self.at = self.now, life.born
        self.lives.append(life)
        self._open[key] = (weakref.ref(storage, lambda gone: self._gone(key, gone)), life)
        return life

    def tell(self, tensors: Iterable[Tensor], use: Any) -> None:
        """Note what tensors are for; they may have been there before."""
        for tensor in tensors:
            self.life_of(tensor).use = use

    def restart(self) -> None:
        """Forget the highest point so far."""
        self.highest, self.at = self.now, self.clock - 1

    def _gone(self, key: int, reference: Any) -> None:
        known = self._open.get(key)
        if known is not None and known[0] is reference:
            self._end(key)

    def _end(self, key: int) -> None:
        _, life = self._open.pop(key)
        life.died = self.clock
        self.clock += 1
        self.now -= life.nbytes
