"""`target` patterns that match exactly the matrices of a module kind, so that a command does what the page shows."""

import re
from collections.abc import Iterable, Sequence

from eckart.checkpoint.naming import in_preset, is_embedding, is_output_layer, matches
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
    patterns = {kind: _patterns(kind, names, known) for kind, names in chosen.items()}
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


def _patterns(kind: str, names: Sequence[str], known: Iterable[str]) -> list[str]:
    """The shortest patterns that match exactly these names: a suffix, a regex, or a list of all names."""
    known = list(known)
    general = sorted({re.sub(r"\d+", r"\\d+", re.escape(name)) for name in names})
    for patterns in ([kind], general):
        if {name for name in known if any(matches(pattern, name) for pattern in patterns)} == set(names):
            return patterns
    return [re.escape(name) if "." in name else f"(?:{name})" for name in names]
