"""What quantising a model to NF4 will write, known from headers: every tensor, in its scheme, and the config."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import eckart
from eckart.adapter.merging.companions import missing_companions
from eckart.adapter.merging.plan import Source
from eckart.adapter.merging.rewrite import Rewriting, Rewritten, as_view, shards_of
from eckart.adapter.preview import Match, Preview
from eckart.adapter.quantisation.fit import CONFIG, bitsandbytes_config, check_model, unfit
from eckart.checkpoint import Checkpoint, LeftOut, MatrixView, layout, open_checkpoint, select
from eckart.checkpoint.layout import module_of
from eckart.checkpoint.naming import is_output_layer
from eckart.checkpoint.nf4_scheme import Nf4Scheme
from eckart.engine import Run
from eckart.errors import MismatchError, OptionError
from eckart.linalg.nf4 import BLOCK_SIZES

ALL_LINEAR = ("all-linear",)


@dataclass(frozen=True)
class QuantizePlan:
    """A quantisation that is known to be possible.

    Attributes:
        base: the model.
        tensors: every tensor of the output.
        left_out: linear layers that stay as they are, and what the output will not have, with the reason.
        config: of the output.
    """

    base: Checkpoint
    tensors: list[Rewritten]
    left_out: list[LeftOut]
    config: dict[str, Any]

    @property
    def quantised(self) -> list[Rewritten]:
        """Weights that will be in NF4."""
        return [tensor for tensor in self.tensors if tensor.scheme]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(spec.nbytes for specs in shards_of(self.tensors).values() for spec in specs)

    def preview(self) -> Preview:
        """What `quantize` would do."""
        matches = [Match(tensor.views[0].name, tensor.views[0].shape, ()) for tensor in self.quantised]
        read = sum(info.nbytes for info in self.base.tensors.values())
        return Preview("quantize", matches, self.left_out, read, self.nbytes)

    def write(self, output: Path, run: Run, *, force: bool) -> dict[str, dict[str, Any]]:
        """Write the output, and return what was noted of each tensor (errors as `quantize`)."""
        facts = {
            "version": eckart.__version__,
            "base": self.base.fingerprint(),
            "tensors": [[tensor.name, str(tensor.dtype), str(tensor.scheme)] for tensor in self.tensors],
        }
        fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        rewriting = Rewriting(self.base, self.tensors, None, self.config)
        return rewriting.write(output, fingerprint, run, stage="Quantising", force=force)


def plan_quantize(
    source: Source,
    *,
    target: Sequence[str] = ALL_LINEAR,
    exclude: Sequence[str] = (),
    block_size: int = 64,
    double: bool = False,
    dtype: torch.dtype | None = None,
) -> QuantizePlan:
    """Choose the layers to quantise, from headers alone.

    Arguments and errors as of `quantize`.
    """
    if block_size not in BLOCK_SIZES:
        msg = f"block size {block_size}: bitsandbytes has {', '.join(map(str, BLOCK_SIZES))}"
        raise OptionError(msg)
    base = open_checkpoint(source)
    found = layout(base)
    check_model(base, found)
    dtypes = {n: dtype if dtype and i.dtype.is_floating_point else i.dtype for n, i in base.tensors.items()}
    reasons = {view.name: unfit(view, dtypes[view.tensor], base.config) for view in select(found, target, exclude)}
    left_out = [LeftOut(name, reason) for name, reason in reasons.items() if reason]
    taken = {view.tensor: view for view in found.matrices if reasons.get(view.name, "not asked for") is None}
    if not taken:
        msg = f"{base.source}: nothing that was asked for can be in NF4"
        raise MismatchError.of(msg, [f"{item.name}: {item.reason}" for item in left_out])
    tensors = []
    for name, info in base.tensors.items():
        view = taken.get(name) or as_view(name, info.shape)
        scheme = Nf4Scheme(name, view.shape, dtypes[name], block_size, double) if name in taken else None
        tensors.append(Rewritten(name, base, name, dtypes[name], (view,), {}, scheme))
    dense = [view for view in found.matrices if view.kind in ("linear", "conv1d") and view.tensor not in taken]
    left_out += [LeftOut(view.name, _why(view)) for view in dense if view.name not in reasons]
    config = _config(base, dtypes.values())
    config[CONFIG] = bitsandbytes_config(
        [*(view.module for view in dense), *map(module_of, base.tied)],
        [view.module for view in taken.values()],
        compute=dtypes[next(iter(taken))],
        double=double,
    )
    return QuantizePlan(base, tensors, [*left_out, *missing_companions(base)], config)


def _why(view: MatrixView) -> str:
    """Why a layer that was not asked for was not."""
    return "output layer, which transformers keeps dense" if is_output_layer(view.module) else "not targeted"


def _config(base: Checkpoint, dtypes: Iterable[torch.dtype]) -> dict[str, Any]:
    """The base's config with the dtype of the tensors in it, if that is one."""
    floating = {dtype for dtype in dtypes if dtype.is_floating_point}
    config = dict(base.config)
    if len(floating) == 1:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(floating.pop()).removeprefix("torch.")
    return config
