"""Names of a base, looked up by those of an adapter: library versions and files name the same modules differently."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.module_tree import core_name, names_in_transformers, tree_name


class NamesOfBase:
    """Names of a base, looked up by the names of an adapter.

    A model's files may lack the first part of a name that its class has (`transformer.h.0…` is stored as `h.0…` in
    GPT-2's), or have one that the adapter's names lack; and library versions differ in the names of modules.
    """

    def __init__(self, names: Sequence[str], base: Checkpoint) -> None:
        self.names = dict.fromkeys(names)
        self.base = base
        self._by_tail = _grouped(self.names, lambda name: name.partition(".")[2])

    def find(self, name: str) -> str | None:
        """The base's name for an adapter's; None if there is none, or it is ambiguous."""
        name = name.replace(".base_layer.", ".")  # PEFT has nn.MultiheadAttention's out_proj there
        for exact in (name, f"{name}.in_proj_weight"):
            if exact in self.names:
                return exact
        if ".weight[" in name:  # an expert of a parameter that is called so
            return self.find(name.replace(".weight[", "["))
        tail = name.partition(".")[2]
        longer = [*self._by_tail.get(name, ()), *([tail] if tail in self.names else [])]
        if longer:
            return longer[0] if len(longer) == 1 else None
        for table, key in ((self._by_tree, name), (self._by_core, core_name(name))):
            if len(found := table.get(key, ())) == 1:
                return found[0]
        return self._by_transformers.get(name)

    @cached_property
    def _by_tree(self) -> dict[str, list[str]]:
        return _grouped(self.names, lambda name: tree_name(name, self.base.config))

    @cached_property
    def _by_core(self) -> dict[str, list[str]]:
        return _grouped(self.names, lambda name: core_name(tree_name(name, self.base.config)))

    @cached_property
    def _by_transformers(self) -> dict[str, str]:
        """The base's names by those of the module tree: the last resort, because transformers has to be imported."""
        tensors = {new: old for old, new in names_in_transformers(self.base)[0].items()}
        modules = {new.removesuffix(".weight"): old.removesuffix(".weight") for new, old in tensors.items()}
        return {new: old for new, old in (tensors | modules).items() if old in self.names}


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    """Names grouped by a key."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups
