"""The position of a module in its model: its layer and its kind."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from eckart.checkpoint.naming import count_endings, shown_names

_EXPERT = re.compile(r"\[\d+\]$")  # the slice of a fused experts tensor, "experts.gate_up_proj[3]"
# The order in which a layer computes; files store tensors alphabetically. Other kinds follow in the files' order.
_FORWARD = (
    *("embed", "wte", "wpe", "q_proj", "query", "k_proj", "key", "v_proj", "value", "o_proj", "out_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
_GENERIC = frozenset({"proj", "linear", "dense", "conv", "fc", "layer", "block"})  # says nothing on its own
LONGEST_KIND = 64  # characters, next to a map or a figure
_FLATTENED = re.compile(r"(?<=\d)_|_(?=\d+(?:_|$))")  # next to a number, where kohya's names have _ for every dot
_INDEX = re.compile(r"(?:^|(?<=\.))\d+(?=\.)")


@dataclass(frozen=True)
class Place:
    """A module's layer (None outside the stack of layers) and its kind, such as `q_proj`."""

    layer: int | None
    kind: str


def places(names: Iterable[str]) -> dict[str, Place]:
    """The place of each module path.

    The kind is the shortest dotted suffix below the layer that distinguishes the kinds and does not begin with a
    generic word such as `proj`: `q_proj` in a Llama, `attn.c_proj` and `mlp.c_proj` in a GPT-2. Experts of one layer
    share a kind. Modules outside the layers keep their last component (`embed_tokens`).

    Args:
        names: module paths as an analysis lists them.

    Returns:
        a dictionary in the order of `names`.
    """
    parts = {name: _split(name) for name in names}
    short = _shortest_suffixes(list(dict.fromkeys(path for _, _, path in parts.values())))
    stacks: dict[str, set[str]] = {}
    for stack, _, path in parts.values():
        stacks.setdefault(short[path], set()).add(stack)
    shared = {label: Counter(part for stack in each for part in {*stack.split(".")}) for label, each in stacks.items()}
    return {
        name: Place(layer, _with_stack(label, stack, shared[label]) if len(stacks[label]) > 1 else label)
        for name, (stack, layer, path) in parts.items()
        for label in [short[path]]
    }


class Named(Protocol):
    """A matrix of some result."""

    @property
    def name(self) -> str:
        """Its module path."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """`(out_features, in_features)`."""
        ...


M = TypeVar("M", bound=Named)


def by_kind(matrices: Sequence[M]) -> dict[str, list[M]]:
    """The matrices of each module kind, kinds in the order in which a layer computes (`q_proj` first)."""
    where = places(matrix.name for matrix in matrices)
    kinds: dict[str, list[M]] = {kind: [] for kind in forward_order(place.kind for place in where.values())}
    for matrix in matrices:
        kinds[where[matrix.name].kind].append(matrix)
    return kinds


def forward_order(kinds: Iterable[str]) -> list[str]:
    """Module kinds in the order in which a layer computes, as far as their names show it."""

    def position(kind: str) -> int:
        return next((place for place, name in enumerate(_FORWARD) if name in kind), len(_FORWARD))

    return sorted(dict.fromkeys(kinds), key=position)


def _split(name: str) -> tuple[str, int | None, str]:
    """The stack before the layer's number, that number, and the path below it with its own numbers hidden."""
    plain = _EXPERT.sub("", name)
    plain = plain if "." in plain else _FLATTENED.sub(".", plain)
    found = _INDEX.search(plain)
    if found is None:
        return "", None, plain
    stack = plain[: found.start()].rstrip(".")
    return stack, int(found.group()), _INDEX.sub("*", plain[found.end() + 1 :])


def _shortest_suffixes(paths: Sequence[str]) -> dict[str, str]:
    """A label for every path: as few trailing components as keep all labels different."""
    components = {path: tuple(part for part in path.split(".") if part != "*") for path in paths}
    endings = count_endings(set(components.values()))
    labels: dict[str, str] = {}
    for path, parts in components.items():
        counts = endings(parts)
        length = 1
        while length < len(parts) and (
            parts[-length].isdigit()  # to_out.0
            or parts[-length] in _GENERIC  # net.proj
            or counts[length - 1] > 1
        ):
            length += 1
        labels[path] = ".".join(parts[-length:])
    shown = shown_names(labels.values(), most=LONGEST_KIND)
    return {path: shown[label] for path, label in labels.items()}


def _with_stack(label: str, stack: str, shared: Counter[str]) -> str:
    """The label of several stacks, prefixed with a part that only this stack has (`decoder.q_proj`)."""
    unique = next((part for part in stack.split(".") if part and shared[part] == 1), None)
    return label if unique is None else f"{unique}.{label}"
