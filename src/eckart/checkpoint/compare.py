"""Whether two checkpoints have the same layout: all differences, from headers, before any tensor is read."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo
from eckart.checkpoint.encodings.undecoded import undecoded
from eckart.checkpoint.layouts import is_buffer, layout, module_of
from eckart.checkpoint.naming import is_embedding, is_output_layer, matches
from eckart.checkpoint.tying import is_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

MANY_FAULTS = 12  # more than a message lists: then look for a common cause
COMPARED_BYTES = 2**23  # bytes read at a time to check whether a tensor changed


def compare_layouts(
    base: Checkpoint, tuned: Checkpoint, exclude: Sequence[str] = (), *, saved: Sequence[str] | None = None
) -> list[str]:
    """Why `tuned` minus `base` is undefined, tensor by tensor; empty if it is defined.

    If the checkpoints are of two different models, that is the only fault.

    A tensor that one checkpoint stores and the other ties is compared with the one it is tied to, except for a matrix
    that only `base` stores: how `tuned` changed it is unknown. Buffers are ignored.

    Args:
        base: the checkpoint that was fine-tuned.
        tuned: the fine-tuned checkpoint.
        exclude: patterns by PEFT's rules; tensors of excluded modules are not compared.
        saved: patterns of modules whose tensors are saved in full, so that their number of tokens may differ; None if
            no tensor can be.

    Raises:
        MismatchError: an `exclude` is neither a name nor a regex.
    """
    prefix = _prefix_fault(base, tuned)
    if prefix:
        return [prefix]
    skipped = {item.name: item.reason for item in layout(base).skipped}
    matrices = {view.tensor for view in layout(tuned).matrices}
    unread = {name: (side, reason) for side in (base, tuned) for name, reason in undecoded(side).items()}
    modules = {name.rpartition(".")[0] for name in unread}
    faults: dict[str, str] = {}
    of_codes: dict[str, str] = {}
    for name in dict.fromkeys([*base.tensors, *tuned.tensors]):
        if any(matches(pattern, module) for pattern in exclude for module in _owners(name)):
            continue
        old, new = _find(base, name), _find(tuned, name)
        if (info := old or new) and is_buffer(info):
            continue
        module = name.rpartition(".")[0]
        if (old is None or new is None) and module in modules:
            # Of the tensors of a weight in codes, and of the weight itself, one fault is enough.
            if name in unread:
                side, reason = unread[name]
                of_codes.setdefault(module, f"{side.source} cannot be used: {reason}; `exclude={module}` skips it")
        elif name in matrices and old and old.name in skipped:
            faults[name] = f"the base cannot be used: {skipped[old.name]}"
        elif fault := _fault(name, base, tuned):
            is_sized = old is not None and new is not None and old.shape[1:] == new.shape[1:] and is_vocabulary(name)
            owner = name.rpartition(".")[0]
            if is_sized and any(matches(pattern, owner) for pattern in saved or ()):
                continue
            save = f", `modules_to_save={owner}` saves it in full"
            faults[name] = fault + (save if is_sized and saved is not None else "")
    prefix, renamed = _renamed(base, tuned, faults)
    faults = {name: fault for name, fault in faults.items() if name not in renamed}
    cause = _common_cause(base, tuned, faults)
    return prefix + ([cause] if cause else [f"{name}: {fault}" for name, fault in (of_codes | faults).items()])


def _renamed(base: Checkpoint, tuned: Checkpoint, faults: Mapping[str, str]) -> tuple[list[str], set[str]]:
    """One fault for several names that differ only in how they begin, and those names; none if fewer than two do."""
    olds = [name for name in faults if name in base.tensors and name not in tuned.tensors]
    news = {name for name in faults if name in tuned.tensors and name not in base.tensors}
    if not olds or not news:
        return [], set()
    ends = {name: _common_end(olds[0], name) for name in news}
    longest, best = max(ends.values(), key=len), {}
    for name in (name for name, end in ends.items() if end == longest):
        old, new = olds[0].removesuffix(longest), name.removesuffix(longest)
        pairs = {each: new + each.removeprefix(old) for each in olds if each.startswith(old)}
        if len(pairs) > len(best) and news.issuperset(pairs.values()):
            best = pairs
    if len(best) < 2:
        return [], set()
    old, new = next(iter(best.items()))
    fault = (
        f"{len(best)} tensors have names that begin differently: {old} in the base ({base.source}) is {new} in the "
        f"tuned checkpoint ({tuned.source}); save both from the same model class"
    )
    return [fault], {*best, *best.values()}


def _common_end(first: str, second: str) -> str:
    """The last parts that two names share."""
    shared = 0
    for one, other in zip(reversed(first.split(".")), reversed(second.split(".")), strict=False):
        if one != other:
            break
        shared += 1
    return ".".join(first.split(".")[-shared:]) if shared else ""


def _common_cause(base: Checkpoint, tuned: Checkpoint, faults: Mapping[str, str]) -> str | None:
    """The common cause of many faults: another architecture, or another size of the same one."""
    if len(faults) <= MANY_FAULTS:
        return None
    shared = [name for name in base.tensors if name in tuned.tensors]
    if not shared:
        first, second = next(iter(base.tensors)), next(iter(tuned.tensors))
        return (
            f"they are different architectures: no tensor is in both ({base.source} has {len(base.tensors)}, such as "
            f"{first}; {tuned.source} has {len(tuned.tensors)}, such as {second})"
        )
    reshaped = [name for name in shared if base.tensors[name].shape != tuned.tensors[name].shape]
    if 2 * len(reshaped) <= len(shared):
        return None
    name = reshaped[0]
    return (
        f"they are models of different sizes: {len(reshaped)} of {len(shared)} tensors have different shapes (such as "
        f"{name}: {base.tensors[name].shape} and {tuned.tensors[name].shape})"
    )


def _fault(name: str, base: Checkpoint, tuned: Checkpoint) -> str | None:
    old, new = _find(base, name), _find(tuned, name)
    leave_out = f"`exclude={_owners(name)[0]}` skips it"
    if new is None:
        return f"only in the base ({base.source}); {leave_out}"
    if old is None:
        return f"only in the tuned checkpoint ({tuned.source}); {leave_out}"
    if name not in tuned.tensors:
        return f"stored in the base, but tied to {new.name} in the tuned checkpoint; {leave_out}"
    if old.shape == new.shape:
        return None
    module = module_of(name)
    if old.shape[1:] == new.shape[1:] and (is_embedding(module) or is_output_layer(module)):
        return f"{old.shape[0]:,} rows in the base, {new.shape[0]:,} in the tuned checkpoint; {leave_out}"
    return f"shape {old.shape} in the base, {new.shape} in the tuned checkpoint; {leave_out}"


def _find(checkpoint: Checkpoint, name: str) -> TensorInfo | None:
    return checkpoint.tensors.get(checkpoint.tied.get(name, name))


def _owners(name: str) -> tuple[str, str]:
    """The names by which a tensor can be excluded: its module, or its own if it is a bare parameter."""
    owner, _, leaf = name.rpartition(".")
    return (owner, module_of(name)) if leaf in ("weight", "bias") else (name, owner)


def _prefix_fault(base: Checkpoint, tuned: Checkpoint) -> str | None:
    """The fault of two checkpoints whose tensor names differ in a prefix."""
    if not base.tensors.keys().isdisjoint(tuned.tensors):
        return None
    for one, other in ((base, tuned), (tuned, base)):
        for name in one.tensors:
            head, _, rest = name.partition(".")
            if rest in other.tensors:
                return (
                    f"names in {one.source} begin with '{head}.', in {other.source} they do not: "
                    "save both from the same model class"
                )
    return None


def changed(base: Checkpoint, tuned: Checkpoint, tensor: str) -> bool:
    """Whether a tensor differs between the checkpoints; reads until the first difference."""
    stored = base.tied.get(tensor, tensor)
    if stored not in base.tensors:
        return True
    info = tuned.tensors[tensor]
    if base.tensors[stored].shape != info.shape:
        return True
    if not info.shape:
        return not _equal(base.read(stored), tuned.read(tensor))
    step = max(1, COMPARED_BYTES * info.shape[0] // max(info.nbytes, 1))
    starts = range(0, info.shape[0], step)
    spans = [(start, min(start + step, info.shape[0])) for start in starts]
    return any(not _equal(base.rows(stored, *span), tuned.rows(tensor, *span)) for span in spans)


def _equal(first: "Tensor", second: "Tensor") -> bool:
    """Whether two tensors have the same values, regardless of their data types."""
    import torch

    if first.dtype == second.dtype and first.dtype.itemsize == 1:
        first, second = first.view(torch.uint8), second.view(torch.uint8)  # torch compares no codes of four bits
    if first.dtype == second.dtype:
        return torch.equal(first, second)
    return torch.equal(first.to(torch.float64), second.to(torch.float64))
