"""Plans the quantization of a model from headers: every tensor, how it is stored, and the config."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from eckart.checkpoint import MatrixView, layout, select
from eckart.checkpoint.companions import missing_companions
from eckart.checkpoint.encodings.nf4_scheme import Nf4Scheme
from eckart.checkpoint.encodings.scaled_scheme import ScaledScheme
from eckart.checkpoint.encodings.targets import common_group, target_config, target_scheme
from eckart.checkpoint.layouts import as_view, module_of
from eckart.checkpoint.module_tree import tree_naming
from eckart.checkpoint.naming import as_patterns, is_output_layer
from eckart.errors import MismatchError, OptionError
from eckart.formats.sources import Source, open_model
from eckart.linalg.nf4_constants import BLOCK_SIZES
from eckart.operations.model_writer.plan import ModelPlan, OutputTensor, dtype_entry
from eckart.operations.output_dtype import float_dtype
from eckart.operations.preview import Match
from eckart.operations.quantization.fit import CONFIG, bitsandbytes_config, check_model, why_not_quantizable
from eckart.result import Skipped

if TYPE_CHECKING:
    import torch

    from eckart.checkpoint import Checkpoint, DType
    from eckart.operations.model_writer.calibrated import Calibration
    from eckart.operations.moments import Moments

ALL_LINEAR = ("all-linear",)
DEFAULT_BLOCK = 64
Encoding = Literal["nf4", "int4", "int8", "fp8", "fp8-block", "mxfp4", "nvfp4"]


def plan_quantize(
    source: Source,
    *,
    to: Encoding = "nf4",
    target: str | Sequence[str] = ALL_LINEAR,
    exclude: str | Sequence[str] = (),
    block_size: int = DEFAULT_BLOCK,
    double: bool = False,
    dtype: DType | torch.dtype | str | None = None,
    moments: Moments | None = None,
    correct: int = 0,
) -> ModelPlan:
    """Choose the layers to quantize, from headers alone.

    Arguments and errors as of `quantize`.
    """
    _check_options(to, block_size=block_size, double=double)
    base = open_model(source, instead="eckart merge writes its base with it, and that model can be quantized")
    found, written = layout(base), float_dtype(dtype)
    check_model(base, found)
    dtypes = {
        name: written if written and info.dtype.is_floating_point else info.dtype for name, info in base.tensors.items()
    }
    reasons = {
        view.name: why_not_quantizable(view, dtypes[view.tensor], base.config, to=to)
        for view in select(found, as_patterns(target), as_patterns(exclude))
    }
    skipped = [Skipped(name, reason) for name, reason in reasons.items() if reason]
    taken = {view.tensor: view for view in found.matrices if reasons.get(view.name, "not targeted") is None}
    if not taken:
        msg = f"{base.source}: no targeted layer can be stored in {to}"
        raise MismatchError.listing(msg, [f"{item.name}: {item.reason}" for item in skipped])
    group = common_group(view.shape[1] for view in taken.values())

    def scheme_of(name: str, view: MatrixView) -> Nf4Scheme | ScaledScheme:
        if to == "nf4":
            return Nf4Scheme(name, view.shape, dtypes[name], block_size, double)
        return target_scheme(to, name, view.shape, dtypes[name], group)

    tensors = []
    for name, info in base.tensors.items():
        view = taken.get(name) or as_view(name, info.shape)
        scheme = scheme_of(name, view) if name in taken else None
        tensors.append(OutputTensor(name, base, name, dtypes[name], (view,), scheme=scheme))
    dense = [view for view in found.matrices if view.kind in ("linear", "conv1d") and view.tensor not in taken]
    skipped += [Skipped(view.name, _reason(view)) for view in dense if view.name not in reasons]
    config = {**base.config, **dtype_entry(base.config, dtypes.values())}
    left = [*(view.module for view in dense), *map(module_of, base.tied)]
    if to == "nf4":
        modules, compute = [view.module for view in taken.values()], dtypes[next(iter(taken))]
        config[CONFIG] = bitsandbytes_config(left, modules, compute=compute, double=double)
    else:
        config[CONFIG] = target_config(to, group, left)
    matches = [Match(view.name, view.shape, ()) for view in taken.values()]
    skipped += missing_companions(base)
    calibration = calibration_of(base, moments, taken.values(), rank=correct) if moments else None
    return ModelPlan("quantize", base, tensors, matches, skipped, config, calibration=calibration)


def _check_options(to: Encoding, *, block_size: int, double: bool) -> None:
    if block_size not in BLOCK_SIZES:
        msg = f"`block_size` must be one of {', '.join(map(str, BLOCK_SIZES))}, got {block_size}"
        raise OptionError(msg)
    if to != "nf4" and (double or block_size != DEFAULT_BLOCK):
        msg = f"`block_size` and `double` are of NF4; got `to={to}`"
        raise OptionError(msg)


def _reason(view: MatrixView) -> str:
    """Why a layer that is not targeted stays as it is."""
    return "output layer, which transformers keeps dense" if is_output_layer(view.module) else "not targeted"


def calibration_of(base: Checkpoint, moments: Moments, views: Iterable[MatrixView], *, rank: int = 0) -> Calibration:
    """How second moments choose the codes of some layers.

    Raises:
        MismatchError: there are moments of none of the layers.
        OptionError: the rank is negative.
    """
    from eckart.operations.model_writer.calibrated import Calibration  # imports torch

    if rank < 0:
        msg = f"`correct` must be a rank of at least 1, got {rank}"
        raise OptionError(msg)
    calibration = Calibration(moments, tree_naming(base), rank)
    layers = [view.module for view in views]
    if not any(calibration.covers(module) for module in layers):
        msg = f"{moments.file} has second moments of no layer of {base.source}; was it collected from this model?"
        raise MismatchError.listing(msg, layers)
    return calibration
