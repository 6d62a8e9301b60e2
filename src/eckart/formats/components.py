"""Components of a diffusion pipeline: module names begin with their component, as in `unet.mid_block`."""

import re
from collections.abc import Iterable, Mapping

from eckart.adapter.adapter import Adapter
from eckart.adapter.deferred import Deferred
from eckart.checkpoint.pipeline import COMPONENTS
from eckart.errors import MismatchError

_OF_COMPONENT = {
    "unet": re.compile(r"(down_blocks|mid_block|up_blocks)\."),
    "transformer": re.compile(r"(single_)?transformer_blocks\.\d+\."),
    "text_encoder": re.compile(r"text_model\.encoder\.layers\.\d+\."),
}


def component(module: str) -> str | None:
    """The component that a module's name begins with, or None."""
    first, dot, _ = module.partition(".")
    return first if dot and first in COMPONENTS else None


def components(adapter: Adapter) -> dict[str, Adapter]:
    """The adapter of each component, under the component's own module names."""
    modules_of: dict[str, list[str]] = {}
    for module in adapter:
        modules_of.setdefault(component(module) or "", []).append(module)
    return {part: _within(adapter, part, modules) for part, modules in modules_of.items()}


def joined(parts: Mapping[str, Adapter]) -> Adapter:
    """Adapters of components, under their own module names, as one adapter of the pipeline.

    Raises:
        MismatchError: biases that PEFT trained in place, which only PEFT's config can express.
    """
    faults = [
        f"{part}: its biases are trained"
        for part, adapter in parts.items()
        if adapter.config.get("bias", "none") != "none"
    ]
    if faults:
        msg = "these components cannot be read as one adapter; give each folder alone"
        raise MismatchError.listing(msg, faults)
    outlines = {part: adapter.outline() for part, adapter in parts.items()}
    layers = {canonical(f"{part}.{name}"): (part, name) for part, adapter in parts.items() for name in adapter}
    saved = {f"{part}.{name}": (part, name) for part, adapter in parts.items() for name in adapter.modules_to_save}
    return Adapter(
        Deferred(
            {new: outlines[part][name] for new, (part, name) in layers.items()},
            lambda new: parts[layers[new][0]][layers[new][1]],
        ),
        Deferred(
            {new: outlines[part].modules_to_save[name] for new, (part, name) in saved.items()},
            lambda new: parts[saved[new][0]].modules_to_save[saved[new][1]],
        ),
        format="diffusers",
        files=tuple(file for adapter in parts.values() for file in adapter.files),
    )


def component_of(modules: Iterable[str]) -> str | None:
    """The component of module names without a prefix, by the blocks that only it has; None if that is ambiguous."""
    names = list(modules)
    candidates = {part for part, blocks in _OF_COMPONENT.items() if any(map(blocks.match, names))}
    return candidates.pop() if len(candidates) == 1 else None


def canonical(module: str) -> str:
    """A module's name as in files: newer CLIP encoders have no text_model, which adapter files still name."""
    return re.sub(r"^(text_encoder\w*)\.encoder\.layers\.", r"\1.text_model.encoder.layers.", module)


def _within(adapter: Adapter, part: str, modules: list[str]) -> Adapter:
    outline = adapter.outline()
    layers = {name.removeprefix(f"{part}."): name for name in modules}
    saved = {
        name.removeprefix(f"{part}."): name for name in adapter.modules_to_save if component(name) == (part or None)
    }
    return Adapter(
        Deferred({new: outline[name] for new, name in layers.items()}, lambda new: adapter[layers[new]]),
        Deferred(
            {new: outline.modules_to_save[name] for new, name in saved.items()},
            lambda new: adapter.modules_to_save[saved[new]],
        ),
        base_model=adapter.base_model,
        task_type=adapter.task_type,
        files=adapter.files,
        keep_scales=adapter.keep_scales,
    )
