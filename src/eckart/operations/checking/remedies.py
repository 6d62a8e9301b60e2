"""The steps that make an adapter fit a runtime, and the one command that takes them."""

import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import get_args

from eckart.adapter.outline import AdapterFormat, AdapterOutline
from eckart.operations.checking.parts import is_of_pipeline, unlike_ranks
from eckart.operations.checking.result import Finding
from eckart.operations.checking.runtimes import RUNTIMES, RuntimeName, Step

_ENDS = {"kohya": ".safetensors", "comfyui": ".safetensors", "gguf": ".gguf"}  # of formats that are one file
_OTHER_NAMES = {"gguf", "mlx"}  # formats whose names are those of another implementation of the model


def steps_of(findings: Sequence[Finding]) -> set[Step] | None:
    """The steps after which no rule applies; None if nothing makes the adapter fit.

    A rule that only needs an option of the runtime counts if no other one applies.
    """
    faults = [finding for finding in findings if finding.rule.effect != "needs"]
    steps: set[Step] = set()
    for finding in faults or findings:
        if finding.rule.step is None:
            return None
        steps.add(finding.rule.step)
    return steps


def command(
    name: RuntimeName, steps: set[Step] | None, outline: AdapterOutline, *, source: str, base: str | None
) -> str | None:
    """The command that takes the steps; None if there are none, or none help.

    Args:
        name: the runtime.
        steps: from `steps_of`.
        outline: the adapter.
        source: the adapter as the user named it.
        base: the model as the user named it; by default the one that the adapter names.
    """
    target = RUNTIMES[name].formats[0]
    if not steps or ("format" in steps and target not in get_args(AdapterFormat)):
        return None
    output = f"{PurePath(source.partition('@')[0]).stem}-{name}{_ENDS.get(target, '')}"
    resized = steps == {"rank"} or (steps == {"rank", "format"} and outline.format == target)
    if resized:  # which writes the format anew, too
        rank = RUNTIMES[name].rank(outline)
        return shlex.join(["eckart", "resize", source, "-o", output, "--rank", str(rank)])
    # Updates that are computed may have other ranks than the adapter's.
    one_rank = any(rule.finds is unlike_ranks for rule in RUNTIMES[name].rules)
    to = ["--for", name]
    if steps == {"format"}:
        to = ["--to", target]
    elif steps == {"lora"} and not one_rank:
        to = ["--to", "lora"]
    # A pipeline's names are in tables; those of other models are in the model alone.
    flattened = outline.format == "kohya" and not is_of_pipeline(outline)
    renames = "format" in steps and (flattened or not _OTHER_NAMES.isdisjoint({target, outline.format}))
    needs_base = "lora" in steps or renames
    model = ["--base", base or outline.base_model or "BASE"] if needs_base else []
    return shlex.join(["eckart", "convert", source, "-o", output, *to, *model])
