"""What quantizing a model to NF4 will write, known from headers: every tensor, in its scheme, and the config."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

from eckart.checkpoint import Checkpoint, DType, MatrixView, layout, open_checkpoint, select
from eckart.checkpoint.companions import missing_companions
from eckart.checkpoint.layouts import as_view, module_of
from eckart.checkpoint.naming import is_output_layer
from eckart.checkpoint.nf4_scheme import Nf4Scheme
from eckart.engine import Execution
from eckart.engine.fingerprint import fingerprint
from eckart.errors import MismatchError, OptionError
from eckart.linalg.nf4_constants import BLOCK_SIZES
from eckart.operations.merging.plan import Source
from eckart.operations.model_writer.rewrite import Rewriting, Rewritten, shards_of
from eckart.operations.preview import Match, Preview
from eckart.operations.quantization.fit import CONFIG, bitsandbytes_config, check_model, why_not_quantizable
from eckart.result import Skipped

ALL_LINEAR = ("all-linear",)


@dataclass(frozen=True)
class QuantizePlan:
    """A quantization that is known to be possible.

    Attributes:
        base: the model.
        tensors: every tensor of the output.
        skipped: linear layers that stay as they are, and what the output will not have, with the reason.
        config: of the output.
    """

    base: Checkpoint
    tensors: list[Rewritten]
    skipped: list[Skipped]
    config: dict[str, Any]

    @property
    def quantized(self) -> list[Rewritten]:
        """Weights that will be in NF4."""
        return [tensor for tensor in self.tensors if tensor.scheme]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(spec.nbytes for specs in shards_of(self.tensors).values() for spec in specs)

    def preview(self) -> Preview:
        """What `quantize` would do."""
        matches = [Match(tensor.views[0].name, tensor.views[0].shape, ()) for tensor in self.quantized]
        read = sum(info.nbytes for info in self.base.tensors.values())
        return Preview("quantize", matches, self.skipped, read, self.nbytes)

    def write(self, output: Path, execution: Execution, *, force: bool) -> dict[str, dict[str, Any]]:
        """Write the output, and return what was noted of each tensor (errors as `quantize`)."""
        facts = {
            "base": self.base.fingerprint(),
            "tensors": [[tensor.name, str(tensor.dtype), str(tensor.scheme)] for tensor in self.tensors],
        }
        rewriting = Rewriting(self.base, self.tensors, None, self.config)
        return rewriting.write(output, fingerprint(facts), execution, stage="Quantizing", force=force)


def plan_quantize(
    source: Source,
    *,
    target: Sequence[str] = ALL_LINEAR,
    exclude: Sequence[str] = (),
    block_size: int = 64,
    double: bool = False,
    dtype: "DType | torch.dtype | str | None" = None,
) -> QuantizePlan:
    """Choose the layers to quantize, from headers alone.

    Arguments and errors as of `quantize`.
    """
    if block_size not in BLOCK_SIZES:
        msg = f"block size {block_size}: bitsandbytes has {', '.join(map(str, BLOCK_SIZES))}"
        raise OptionError(msg)
    base = open_checkpoint(source)
    found = layout(base)
    check_model(base, found)
    to = None if dtype is None else DType.of(dtype)
    dtypes = {n: to if to and i.dtype.is_floating_point else i.dtype for n, i in base.tensors.items()}
    reasons = {
        view.name: why_not_quantizable(view, dtypes[view.tensor], base.config)
        for view in select(found, target, exclude)
    }
    skipped = [Skipped(name, reason) for name, reason in reasons.items() if reason]
    taken = {view.tensor: view for view in found.matrices if reasons.get(view.name, "not asked for") is None}
    if not taken:
        msg = f"{base.source}: nothing that was asked for can be in NF4"
        raise MismatchError.listing(msg, [f"{item.name}: {item.reason}" for item in skipped])
    tensors = []
    for name, info in base.tensors.items():
        view = taken.get(name) or as_view(name, info.shape)
        scheme = Nf4Scheme(name, view.shape, dtypes[name], block_size, double) if name in taken else None
        tensors.append(Rewritten(name, base, name, dtypes[name], (view,), {}, scheme))
    dense = [view for view in found.matrices if view.kind in ("linear", "conv1d") and view.tensor not in taken]
    skipped += [Skipped(view.name, _why(view)) for view in dense if view.name not in reasons]
    config = _config(base, dtypes.values())
    config[CONFIG] = bitsandbytes_config(
        [*(view.module for view in dense), *map(module_of, base.tied)],
        [view.module for view in taken.values()],
        compute=dtypes[next(iter(taken))],
        double=double,
    )
    return QuantizePlan(base, tensors, [*skipped, *missing_companions(base)], config)


def _why(view: MatrixView) -> str:
    """Why a layer that was not asked for was not."""
    return "output layer, which transformers keeps dense" if is_output_layer(view.module) else "not targeted"


def _config(base: Checkpoint, dtypes: Iterable[DType]) -> dict[str, Any]:
    """The base's config with the dtype of the tensors in it, if that is one."""
    floating = {dtype for dtype in dtypes if dtype.is_floating_point}
    config = dict(base.config)
    if len(floating) == 1:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = floating.pop().name
    return config
