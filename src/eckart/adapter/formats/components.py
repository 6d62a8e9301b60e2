"""A pipeline's components: a module's name begins with the one that it is in, as in `unet.mid_block`."""

import re
from collections.abc import Iterable, Mapping

from eckart.adapter.adapter import Adapter
from eckart.adapter.deferred import Deferred

COMPONENTS = (
    *("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3"),
    *("connectors", "prior"),
)
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
    found: dict[str, list[str]] = {}
    for module in adapter:
        found.setdefault(component(module) or "", []).append(module)
    return {part: _within(adapter, part, modules) for part, modules in found.items()}


def joined(parts: Mapping[str, Adapter]) -> Adapter:
    """Adapters of components, under their own module names, as one adapter of the pipeline."""
    homes = {canonical(f"{part}.{module}"): (part, module) for part, adapter in parts.items() for module in adapter}
    outlines = {part: adapter.outline() for part, adapter in parts.items()}
    layers = {name: outlines[part][module] for name, (part, module) in homes.items()}
    saved = {
        f"{part}.{name}": tensor for part, adapter in parts.items() for name, tensor in adapter.modules_to_save.items()
    }
    return Adapter(
        Deferred(layers, lambda name: parts[homes[name][0]][homes[name][1]]),
        saved,
        format="diffusers",
        files=tuple(file for adapter in parts.values() for file in adapter.files),
    )


def component_of(modules: Iterable[str]) -> str | None:
    """The component that module names without one belong to, by the blocks that only it has."""
    names = list(modules)
    found = {part for part, blocks in _OF_COMPONENT.items() if any(map(blocks.match, names))}
    return found.pop() if len(found) == 1 else None


def canonical(module: str) -> str:
    """A module's name as files have it: CLIP's encoders have lost their text_model, which adapters keep."""
    return re.sub(r"^(text_encoder\w*)\.encoder\.layers\.", r"\1.text_model.encoder.layers.", module)


def _within(adapter: Adapter, part: str, modules: list[str]) -> Adapter:
    whole = {module.removeprefix(f"{part}."): module for module in modules}
    outlines = adapter.outline()
    layers = Deferred({own: outlines[name] for own, name in whole.items()}, lambda own: adapter[whole[own]])
    return Adapter(layers, base_model=adapter.base_model, task_type=adapter.task_type, files=adapter.files)
