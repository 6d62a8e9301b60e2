"""Which matrices a command works on: PEFT's target rules and presets, over a layout."""

from collections.abc import Iterable, Sequence

from eckart.checkpoint.layouts import Layout, MatrixView, module_of
from eckart.checkpoint.naming import PRESETS, as_patterns, matches, nearest_patterns
from eckart.errors import MismatchError


def select(
    layout: Layout,
    target: str | Sequence[str],
    exclude: str | Sequence[str] = (),
    *,
    known: Iterable[str] = (),
    with_experts: bool = False,
) -> list[MatrixView]:
    """The matrices that some `target` matches and no `exclude` does, in the layout's order.

    Args:
        layout: of the checkpoint that is worked on.
        target: exact names, dotted suffixes, regexes, or presets (`attention`, `attention-min`, `mlp`,
            `all-linear`); a string is one pattern. Presets take linear and Conv1D layers only.
        exclude: the same; takes precedence over `target`.
        known: further module names that `exclude` may match although they are not in this layout, such as
            those of the base checkpoint.
        with_experts: let `mlp` and `all-linear` match fused experts too.

    Raises:
        MismatchError: patterns that match nothing, each with the nearest names; or nothing is left.
    """
    target, exclude = as_patterns(target), as_patterns(exclude)
    others = [*_reasons(layout), *known]
    faults = [fault for pattern in target if (fault := _fault(pattern, layout, ()))]
    faults += [fault for pattern in exclude if (fault := _fault(pattern, layout, others))]
    if faults:
        msg = "patterns that match no matrix"
        raise MismatchError.listing(msg, faults)
    of_experts = with_experts and not {"mlp", "all-linear"}.isdisjoint(target)
    taken = [
        view
        for view in layout.matrices
        if (_takes_any(target, view) or (of_experts and view.kind == "expert")) and not _takes_any(exclude, view)
    ]
    if not taken:
        msg = f"every matrix that {', '.join(target)} matches is excluded by {', '.join(exclude)}"
        raise MismatchError(msg)
    return taken


def _takes_any(patterns: Sequence[str], view: MatrixView) -> bool:
    return any(_takes(pattern, view) for pattern in patterns)


def _takes(pattern: str, view: MatrixView) -> bool:
    if pattern in PRESETS and view.kind not in ("linear", "conv1d"):
        return False
    return pattern == view.name or matches(pattern, view.module)


def _fault(pattern: str, layout: Layout, others: Sequence[str]) -> str | None:
    """Why a pattern matches nothing in a layout; None if it matches something."""
    try:
        if any(_takes(pattern, view) for view in layout.matrices) or any(matches(pattern, n) for n in others):
            return None
    except MismatchError as error:
        return str(error)
    reasons = {} if pattern in PRESETS else _reasons(layout)
    for module, reason in reasons.items():
        if matches(pattern, module):
            return f"{pattern!r}: {module} {reason}"
    near = nearest_patterns(pattern, (view.module for view in layout.matrices))
    return f"{pattern!r} matches nothing; nearest: {', '.join(near)}"


def _reasons(layout: Layout) -> dict[str, str]:
    """Names that exist in a model but cannot be targeted, and why."""
    tied = {
        module: f"shares the weight of {view.module}: give that name"
        for view in layout.matrices
        for module in view.tied_modules
    }
    return tied | {module_of(item.name): f"is left out: {item.reason}" for item in layout.skipped}
