"""Extracting a LoRA file of an image or video model: which matrices its format can name, and the layers' new names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterFormat, LayerOutline, TensorOutline
from eckart.checkpoint import Checkpoint, MatrixView
from eckart.checkpoint.dtypes import FLOAT32
from eckart.checkpoint.layouts import Layout
from eckart.errors import MismatchError, OptionError
from eckart.formats.families.family import Family
from eckart.formats.families.naming import FamilyFormat
from eckart.formats.families.table import FAMILIES
from eckart.formats.family_names import FAMILY_FORMATS, unnamed_layers
from eckart.formats.model_names import Model
from eckart.formats.renaming_steps import steps_to
from eckart.result import Skipped

_KINDS = {
    "embedding": "an embedding, and its readers support only updates of linear layers and convolutions",
    "expert": "a stack of experts, and its readers do not support updates of single ones",
    "conv1d": "a Conv1D, and no model of these families has one",
}


@dataclass(frozen=True)
class Written:
    """The format and the names that an extraction is written in.

    Attributes:
        to: the format.
        families: the families that the model may be of; all of them if there are none.
    """

    to: AdapterFormat
    families: Sequence[Family]

    @classmethod
    def given(cls, to: AdapterFormat | None, family: str | None, modules_to_save: Sequence[str]) -> "Written | None":
        """The format of `to`, if it is one of image and video models.

        Raises:
            OptionError: it is none of them, there is no such family, or the format cannot save tensors in full.
        """
        if to not in (None, "peft", *FAMILY_FORMATS):
            msg = f"`to` must be one of peft, {', '.join(FAMILY_FORMATS)}, got {to!r}"
            raise OptionError(msg)
        if family is not None and (family not in FAMILIES or to in (None, "peft")):
            msg = f"`family` must be one of {', '.join(FAMILIES)}, with `to` {', '.join(FAMILY_FORMATS)}"
            raise OptionError(msg)
        if to in (None, "peft"):
            return None
        if modules_to_save:
            msg = f"files in {to}'s format contain updates only: leave out `modules_to_save`, or choose `to` peft"
            raise OptionError(msg)
        return cls(to, [FAMILIES[family]] if family else [])

    def layout(self, found: Layout, model: Model) -> Layout:
        """The matrices that the format can name; the others are skipped, each with the reason.

        A fused projection that is a bare parameter (OpenCLIP's `in_proj_weight`) is named as the layer that it is.

        Raises:
            MismatchError: no family has any of the modules, or several do and their names differ.
        """
        outlines = {view.name: _outline(view) for view in found.matrices if view.kind not in _KINDS}
        reasons = unnamed_layers(outlines, cast("FamilyFormat", self.to), families=self.families, model=model)
        if len(reasons) == len(outlines):
            first = next(iter(reasons.items()), ("it", "has no matrices"))
            msg = f"{model.source} is not known to be an image or video model: {first[0]}: {first[1]}"
            raise MismatchError(msg)
        matrices, skipped = [], list(found.skipped)
        for view in found.matrices:
            if reason := _KINDS.get(view.kind) or reasons.get(view.name):
                skipped.append(Skipped(view.tensor, f"not in {self.to}'s files: {reason}"))
            else:
                matrices.append(replace(view, kind="linear", swaps_factors=False) if view.kind == "parameter" else view)
        return Layout(matrices, skipped)

    def named(self, adapter: Adapter, base: Checkpoint) -> Adapter:
        """An extracted adapter under the names of the format.

        Raises:
            MismatchError: layers that cannot be renamed; all of them.
        """
        faults: list[str] = []
        for renaming, form in steps_to(adapter, self.to, model=Model.of(base), families=self.families):
            adapter = renaming.of(adapter, format=form)
            faults += renaming.faults
        if faults:
            msg = f"the extracted adapter cannot be written in {self.to}'s format"
            raise MismatchError.listing(msg, faults)
        return adapter


def _outline(view: MatrixView) -> LayerOutline:
    """The outline of an update of rank 1."""
    A = TensorOutline((1, *view.tensor_shape[1:]), FLOAT32)
    B = TensorOutline((view.tensor_shape[0], 1, *(1 for _ in view.tensor_shape[2:])), FLOAT32)
    return LayerOutline(A, B, 1.0, kind="conv" if view.kind == "conv" else "linear")
