"""`target` patterns that match exactly the matrices of a module kind, so that a command does what the page shows."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from eckart.checkpoint.naming import count_endings, in_preset, is_embedding, is_output_layer, is_suffix, matches
from eckart.operations import Analysis

PRESETS = ("all-linear", "attention", "attention-min", "mlp")
NOT_TARGETED = "not targeted"


def targets_of(analysis: Analysis) -> dict[str, dict[str, list[str]]]:
    """Target patterns and presets for the matrices of an analysis, checked against every one of them.

    Returns:
        `patterns`: for each module kind that can be extracted, the patterns that match it and nothing else; `presets`:
        the kinds that each preset matches, for presets that match all matrices of these kinds and no others.
    """
    kinds = {kind: [matrix.name for matrix in matrices] for kind, matrices in analysis.by_kind().items()}
    chosen = {kind: names for kind, names in kinds.items() if all(map(_extractable, names))}
    known = [*(matrix.name for matrix in analysis.matrices)]
    known += [item.name for item in analysis.skipped if item.reason == NOT_TARGETED]
    linear = [name for name in known if _extractable(name)]
    count = _counter(known)
    patterns = {kind: _patterns(kind, names, count) for kind, names in chosen.items()}
    presets = {}
    for preset in PRESETS:
        taken = {name for name in linear if in_preset(preset, name)}
        whole = [kind for kind, names in chosen.items() if taken.issuperset(names)]
        if whole and sum(len(chosen[kind]) for kind in whole) == len(taken):
            presets[preset] = whole
    return {"patterns": patterns, "presets": presets}


def _extractable(name: str) -> bool:
    """Whether a matrix of this name can be extracted: the weight of a module, but not an embedding or an expert."""
    return "[" not in name and not is_embedding(name) and (in_preset("all-linear", name) or is_output_layer(name))


def _counter(known: Iterable[str]) -> Callable[[str], int]:
    """A function that counts the known names that one of the patterns below matches.

    It compares no pattern with every name: many kinds would take the square of their number, and a name may itself be a
    regex that takes forever.
    """
    known = set(known)
    endings = count_endings(name.split(".") for name in known)
    generals = Counter(map(_general, known))

    def count(pattern: str) -> int:
        if pattern in PRESETS:
            return sum(in_preset(pattern, name) for name in known)
        return endings(pattern.split("."))[-1] if is_suffix(pattern) else generals[pattern]

    return count


def _general(name: str) -> str:
    """The pattern of all names that differ from this one in their numbers only."""
    return re.sub(r"\d+", r"\\d+", re.escape(name))


def _patterns(kind: str, names: Sequence[str], count: Callable[[str], int]) -> list[str]:
    """The shortest patterns that match exactly these names: a suffix, a regex, or a list of all names."""
    if is_suffix(kind) and all(matches(kind, name) for name in names) and count(kind) == len(names):
        return [kind]
    general = sorted({*map(_general, names)})
    if sum(map(count, general)) == len(names):
        return general
    return [re.escape(name) if "." in name else f"(?:{re.escape(name)})" for name in names]
