"""Which layers transformers loads in 4 bits, and the config for it."""

import re
from collections.abc import Mapping
from typing import Any

from eckart.checkpoint import Checkpoint, DType, Layout, MatrixView
from eckart.checkpoint.encodings.nf4 import Nf4Checkpoint
from eckart.checkpoint.encodings.nf4_scheme import NF4_DTYPES
from eckart.checkpoint.encodings.targets import TARGETS, why_not_in_blocks
from eckart.checkpoint.naming import in_preset, is_output_layer
from eckart.checkpoint.orientation import model_types
from eckart.errors import MismatchError

CONFIG = "quantization_config"
_OWN_LINEAR = {"falcon", "idefics", "deepseek_v4"}  # with a class of linear layers that transformers does not replace
_KEPT_IN_FLOAT32 = {"wo": {"t5", "mt5", "umt5", "udop", "pop2piano"}, "qformer": {"blip-2"}}

_CLASS_HEADS = ("classifier", "score")


def check_model(base: Checkpoint, found: Layout) -> None:
    """Refuse a model that transformers would not load in 4 bits at all.

    Raises:
        MismatchError: it is already quantized, has no config, or transformers leaves the layers of its type dense.
    """
    faults = []
    stored = any(item.reason.startswith("quantized") for item in found.skipped)
    if isinstance(base, Nf4Checkpoint) or stored or base.config.get(CONFIG):
        faults.append("it is already quantized; use the model that it was made from")
    if not base.config:
        faults.append("it has no config.json, where transformers looks for the quantization: use a model folder")
    faults += [
        f"the linear layers of {kind} have their own class, which transformers does not load in 4 bits"
        for kind in sorted(model_types(base.config) & _OWN_LINEAR)
    ]
    if faults:
        msg = f"{base.source}: this model cannot be quantized"
        raise MismatchError.listing(msg, faults)


def why_not_quantizable(view: MatrixView, dtype: DType, config: Mapping[str, Any], *, to: str) -> str | None:
    """Why a targeted matrix stays as it is in a model in an encoding; None if it does not."""
    parts, misfit = view.module.split("."), why_not_in_blocks(to, view.shape) if to in TARGETS else None
    kept = any(part in parts and not kinds.isdisjoint(model_types(config)) for part, kinds in _KEPT_IN_FLOAT32.items())
    rules = (
        (view.kind not in ("linear", "conv1d"), f"{view.kind}, and {to} is for linear layers"),
        (view.kind == "conv1d" and to in TARGETS, f"Conv1D, of which no layer loads {to}"),
        (misfit is not None, misfit or ""),
        ("experts" in parts, "expert: transformers stacks experts in one parameter, which stays dense"),
        (not in_preset("all-linear", view.module) and not is_output_layer(view.module), "router"),
        (kept, "transformers keeps it in float32"),
        (dtype.name not in NF4_DTYPES, f"{dtype}: use `dtype=float32` or a narrower one"),
    )
    return next((reason for applies, reason in rules if applies), None)


def bitsandbytes_config(dense: list[str], taken: list[str], *, compute: DType, double: bool) -> dict[str, Any]:
    """The quantization config that transformers' BitsAndBytesConfig writes for a model in NF4.

    Args:
        dense: linear modules that stay as they are.
        taken: modules in NF4.
        compute: dtype of matrix products.
        double: whether scales are quantized too.
    """
    return {
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": compute.name,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": _skipped(dense, taken),
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }


def _skipped(dense: list[str], taken: list[str]) -> list[str] | None:
    """Modules that transformers must leave alone; None if its default leaves exactly these.

    Its default leaves the layer of the logits over the vocabulary, but not a classification head.
    """
    if all(is_output_layer(name) and name.rpartition(".")[2] not in _CLASS_HEADS for name in dense):
        return None
    # A plain name also matches as an ending; it is anchored if it would match a module in NF4.
    return [f"^{re.escape(name)}$" if any(module.endswith(name) for module in taken) else name for name in dense]
