"""The memory of tensors over time: every storage that a program allocates, until it is freed."""

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
        nbytes: size, rounded up to what an allocator hands out.
        start: when it was allocated, on the log's clock, which counts allocations and releases.
        origin: what the log's `origin` returned then.
        use: what it is used for, if labelled.
        end: when it was freed; None while it is alive.
    """

    nbytes: int
    start: int
    origin: Any
    use: Any = None
    end: int | None = None

    def is_alive(self, at: int) -> bool:
        """Whether the storage was allocated right after this tick of the clock."""
        return self.start <= at and (self.end is None or self.end > at)


class StorageLog(TorchDispatchMode):
    """Inside the block, records the storages of everything that torch computes, on tensors with or without data.

    Memory that an operator allocates and frees before it returns is not recorded.

    Attributes:
        lives: all storages, in the order of their allocation.
        clock: allocations and releases so far.
        alive_bytes: bytes allocated now.
        peak_bytes: most bytes allocated at once since `restart`.
        peak_at: when that was, on the clock.

    Args:
        granularity: bytes are rounded up to multiples of this.
        origin: called at each allocation; its result becomes `Life.origin`.
    """

    def __init__(self, *, granularity: int = 1, origin: Callable[[], Any] = lambda: None) -> None:
        super().__init__()
        self.lives: list[Life] = []
        self.clock = self.alive_bytes = self.peak_bytes = self.peak_at = 0
        self._granularity, self._origin = granularity, origin
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], Life]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and record its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.life_of(leaf)
        return result

    def life_of(self, tensor: Tensor) -> Life:
        """The record of a tensor's storage, created now if it is new."""
        storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()  # of a DTensor, this device's shard
        key, nbytes = storage._cdata, -(-storage.nbytes() // self._granularity) * self._granularity
        entry = self._alive.get(key)
        if entry is not None and entry[0]() is storage:
            if entry[1].nbytes == nbytes:
                return entry[1]
            self._end(key)  # resized: another piece of memory
        life = Life(nbytes, self.clock, self._origin())
        self.clock += 1
        self.alive_bytes += nbytes
        if self.alive_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_at = self.alive_bytes, life.start
        self.lives.append(life)
        self._alive[key] = (weakref.ref(storage, lambda gone: self._gone(key, gone)), life)
        return life

    def label(self, tensors: Iterable[Tensor], use: Any) -> None:
        """Record what tensors are used for, also of tensors that were allocated before."""
        for tensor in tensors:
            self.life_of(tensor).use = use

    def peak_of(self, size: Callable[[Life], int], since: int) -> int:
        """The moment, from a tick of the clock on, at which the sizes of what is allocated have the highest sum."""
        changes = [(life.start, size(life)) for life in self.lives]
        changes += [(life.end, -size(life)) for life in self.lives if life.end is not None]
        total, highest, at = 0, -1, since
        for tick, change in sorted(changes):
            total += change
            if tick >= since and total > highest:
                highest, at = total, tick
        return at

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak_bytes, self.peak_at = self.alive_bytes, self.clock - 1

    def _gone(self, key: int, reference: Any) -> None:
        entry = self._alive.get(key)
        if entry is not None and entry[0] is reference:
            self._end(key)

    def _end(self, key: int) -> None:
        _, life = self._alive.pop(key)
        life.end = self.clock
        self.clock += 1
        self.alive_bytes -= life.nbytes
