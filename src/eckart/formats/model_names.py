"""A model as the names and shapes of its matrices: what tells whether, and under which names, an adapter fits it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import Tensor, nn

from eckart.adapter.adapter import Adapter
from eckart.checkpoint import Checkpoint, MatrixView, layout, open_checkpoint
from eckart.formats.components import COMPONENTS, canonical, component_of

Base = str | Path | Mapping[str, Tensor] | nn.Module | Checkpoint
_PREFIX = re.compile(r"lora_[a-z]+\d?_")
_PREFIXES = {
    "unet": ("lora_unet_",),
    "transformer": ("lora_unet_", "lora_transformer_"),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_", "lora_te3_"),
    "text_encoder_3": ("lora_te3_",),
}


@dataclass(frozen=True)
class Model:
    """A base and what it has.

    Attributes:
        source: as the user called it.
        views: its matrices by module name, in a pipeline with the component in front.
        component: of a pipeline, if it is one alone; its own module names do not have it in front.
        is_pipeline: whether it is a pipeline, or a component of one.
    """

    source: str
    views: Mapping[str, MatrixView]
    component: str | None
    is_pipeline: bool

    @classmethod
    def of(cls, base: Base) -> "Model":
        """The model in a checkpoint, in a pipeline's folder, or in the folder of one of its components.

        Raises:
            SourceError: nothing readable is there.
            FileFormatError: files are malformed.
        """
        if isinstance(base, (Mapping, nn.Module)):
            return cls._single(open_checkpoint(base))
        if not isinstance(base, (str, Path)):
            return cls._single(base)
        folders = {part: Path(base).expanduser() / part for part in COMPONENTS}
        views: dict[str, MatrixView] = {}
        for part, folder in folders.items():
            if folder.is_dir():
                own = _views(open_checkpoint(folder))
                views |= {canonical(f"{part}.{name}"): view for name, view in own.items()}
        return cls(str(base), views, None, is_pipeline=True) if views else cls._single(open_checkpoint(base))

    @classmethod
    def _single(cls, checkpoint: Checkpoint) -> "Model":
        views = _views(checkpoint)
        part = component_of(views)
        named = {f"{part}.{name}" if part else name: view for name, view in views.items()}
        return cls(checkpoint.source, named, part, is_pipeline=part is not None)

    def modules(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The modules that each flattened name may be."""
        prefixes = {found[0] for name in names if (found := _PREFIX.match(name))}
        table: dict[str, list[str]] = {}
        for module in self.views:
            part, _, own = module.partition(".")
            if self.is_pipeline:
                forms = {prefix + flattened(own) for prefix in _PREFIXES.get(part, ())}
            else:
                forms = {
                    prefix + flattened(name) for prefix in prefixes for name in (module, module.removeprefix("model."))
                }
            for form in forms:
                table.setdefault(form, []).append(module)
        return table

    def misfits(self, adapter: Adapter) -> list[str]:
        """Layers, of an outline, that the model has no module for, or one of another shape."""
        faults = []
        for name, layer in adapter.items():
            view = self.views.get(name) or self.views.get(f"{self.component}.{name}")
            shape = (layer.lora_B.shape[0], prod(layer.lora_A.shape[1:]))
            if layer.kind == "embedding":
                shape = (shape[1], shape[0])
            if view is None:
                faults.append(f"{name}: {self.source} has no such module")
            elif view.shape != shape:
                faults.append(f"{name}: the update is {shape}, its weight in {self.source} {view.shape}")
            elif view.kind == "embedding" and layer.kind != "embedding" and name.endswith(view.module):
                faults.append(f"{name}: the update is of a linear layer, and this is an embedding")
        return faults


def flattened(module: str) -> str:
    """A module's name as kohya writes it behind the prefix."""
    return module.replace(".", "_")


def _views(checkpoint: Checkpoint) -> dict[str, MatrixView]:
    matrices = layout(checkpoint).matrices
    return {name: view for view in matrices for name in (view.name, *view.tied_modules)}
