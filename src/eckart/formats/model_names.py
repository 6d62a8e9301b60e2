"""A model as the names and shapes of its matrices, which decide whether an adapter fits, and under which names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, Union, cast

from eckart.adapter.outline import AdapterOutline, LayerOutline
from eckart.checkpoint import Checkpoint, MatrixView, ModelSource, layout, open_checkpoint
from eckart.checkpoint.base_names import NamesOfBase
from eckart.checkpoint.layouts import module_of
from eckart.checkpoint.pipeline import COMPONENTS, PipelineCheckpoint
from eckart.formats.components import component, component_of

Base: TypeAlias = Union[ModelSource, Checkpoint, "Model"]
_DENOISER = ("diffusion_model.", "model.diffusion_model.", "transformer.", "unet.", "base_model.model.")
_PREFIXES = {
    "unet": ("lora_unet_", "lycoris_"),
    "transformer": ("lora_unet_", "lora_transformer_", "lycoris_"),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_", "lora_te3_"),
    "text_encoder_3": ("lora_te3_",),
}
_ANY = tuple(dict.fromkeys(prefix for prefixes in _PREFIXES.values() for prefix in prefixes))


@dataclass(frozen=True)
class Model:
    """A base model and its matrices.

    Attributes:
        source: the base as the user named it.
        views: its matrices by module name; in a pipeline the name begins with the component.
        component: the component, if the base is a single one of a pipeline; its files do not name it.
        is_pipeline: whether the base is a pipeline, or a component of one.
        config: the config.json of a single model.
        checkpoint: the files of a single model.
    """

    source: str
    views: Mapping[str, MatrixView]
    component: str | None
    is_pipeline: bool
    config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None

    @classmethod
    def of(cls, base: Base) -> "Model":
        """The model in a checkpoint, in a pipeline's folder, or in the folder of one of its components.

        Raises:
            SourceError: nothing readable is there.
            FileFormatError: files are malformed.
        """
        if isinstance(base, Model):
            return base
        if not isinstance(base, (str, Path)):
            is_checkpoint = hasattr(base, "read_bytes")  # neither a state dict nor a module has that
            return cls._single(
                cast("Checkpoint", base) if is_checkpoint else open_checkpoint(cast("ModelSource", base))
            )
        return cls._single(open_checkpoint(base))

    @classmethod
    def of_type(cls, model_type: str) -> "Model":
        """A model of which only transformers' `model_type` is known, such as llama."""
        return cls(model_type, {}, None, is_pipeline=False, config={"model_type": model_type})

    @classmethod
    def of_layers(cls, layers: Mapping[str, LayerOutline]) -> "Model":
        """The part of a model that these layers of an adapter update."""
        return cls._from_views("the other adapters", {name: _updated(name, layer) for name, layer in layers.items()})

    @classmethod
    def _single(cls, checkpoint: Checkpoint) -> "Model":
        if isinstance(checkpoint, PipelineCheckpoint):
            classes = [str(part.config.get("_class_name", "")) for part in checkpoint.parts.values()]
            views = _views(checkpoint)
            config = {"_class_name": next(filter(None, classes), "")}
            return cls(checkpoint.source, views, None, is_pipeline=True, config=config, checkpoint=checkpoint)
        model = cls._from_views(checkpoint.source, _views(checkpoint), _component(checkpoint))
        return replace(model, config=checkpoint.config, checkpoint=checkpoint)

    @classmethod
    def _from_views(cls, source: str, views: Mapping[str, MatrixView], part: str | None = None) -> "Model":
        part = part or component_of(views)
        named = {f"{part}.{name}" if part else name: view for name, view in views.items()}
        return cls(source, named, part, is_pipeline=part is not None)

    @property
    def class_name(self) -> str:
        """The class of a component in diffusers; "" if it is not stated."""
        return str(self.config.get("_class_name", ""))

    @property
    def modules_are_known(self) -> bool:
        """Whether the names of its modules are known, rather than only its type."""
        return bool(self.views)

    @cached_property
    def names(self) -> frozenset[str]:
        """The modules that have a tensor, and tensors that are no module's weight."""
        tensors = [module_of(name) for name in self.checkpoint.tensors] if self.checkpoint else []
        start = f"{self.component}." if self.component else ""
        biases = [name.removesuffix(".bias") for name in tensors]
        return frozenset([*self.views, *(start + name for name in (*tensors, *biases))])

    def modules(self, name: str) -> list[str]:
        """The modules that a name in a file may mean, by the names of this model alone."""
        if name in self.names:
            return [name]
        if "." in name:
            inner = next((name.removeprefix(start) for start in _DENOISER if name.startswith(start)), name)
            found = [start + inner for start in ("", *_DENOISER) if start + inner in self.names]
            return found[:1] if self._is_foreign(name) is False else []
        return self._flat.get(name, [])

    def _is_foreign(self, name: str) -> bool:
        """Whether a dotted name is that of a component that this model is not."""
        return self.component is not None and component(name) not in (None, self.component)

    @cached_property
    def _flat(self) -> dict[str, list[str]]:
        """The modules by every flattened name that files have for them."""
        table: dict[str, list[str]] = {}
        for module in sorted(self.names):
            part, _, inner = module.partition(".")
            denoiser = next((module.removeprefix(start) for start in _DENOISER[:2] if module.startswith(start)), None)
            if self.is_pipeline and part in COMPONENTS:
                forms = {prefix + flattened(inner) for prefix in _PREFIXES.get(part, ())}
            elif denoiser:
                forms = {prefix + flattened(denoiser) for prefix in _PREFIXES["transformer"]}
            else:
                bare = {flattened(module), flattened(module.removeprefix("model."))}
                forms = {prefix + name for prefix in _ANY for name in bare}
            for form in forms:
                table.setdefault(form, []).append(module)
        return table

    def misfits(self, adapter: AdapterOutline) -> list[str]:
        """Faults of layers that the model has no module for, or one of a different shape.

        A model without matrices is known by its type, or quantized in a way that is not read.
        """
        faults = []
        names = NamesOfBase(list(self.views), self.checkpoint) if self.checkpoint else None
        for name, layer in adapter.items() if self.views else ():
            view = self.views.get(name) or self.views.get(f"{self.component}.{name}")
            if view is None and names is not None:
                # A parameter that is one matrix, such as a router's `gate.weight`, is a module's weight here.
                view = self.views.get(names.find(name.removesuffix(".weight")) or "")
            shape = layer.update_shape
            if view is None and self.checkpoint and f"{name}.weight" in self.checkpoint.tensors:
                continue  # quantized in a way that is not read
            if view is None:
                faults.append(f"{name}: {self.source} has no such module")
            elif view.shape != shape:
                faults.append(f"{name}: the update is {shape}, but the weight in {self.source} is {view.shape}")
            elif view.kind == "embedding" and layer.kind != "embedding" and name.endswith(view.module):
                faults.append(f"{name}: the update is for a linear layer, but this is an embedding")
        return faults


def _component(checkpoint: Checkpoint) -> str | None:
    """The component that a checkpoint of diffusers is, by its class and its folder."""
    name = str(checkpoint.config.get("_class_name", ""))
    part = "unet" if name.startswith("UNet") else "transformer" if "Transformer" in name else None
    folder = checkpoint.folder.name if checkpoint.folder else ""
    return folder if part and folder in COMPONENTS and folder.startswith(part) else part


def flattened(module: str) -> str:
    """A module's name as kohya writes it after the prefix."""
    return module.replace(".", "_")


def _views(checkpoint: Checkpoint) -> dict[str, MatrixView]:
    matrices = layout(checkpoint).matrices
    return {name: view for view in matrices for name in (view.name, *view.tied_modules)}


def _updated(name: str, layer: LayerOutline) -> MatrixView:
    """The matrix that a layer updates."""
    shape = layer.update_shape
    tensor_shape = shape if layer.kind == "embedding" else (layer.lora_B.shape[0], *layer.lora_A.shape[1:])
    return MatrixView(name, name, f"{name}.weight", layer.kind, shape, 0, False, tensor_shape)
