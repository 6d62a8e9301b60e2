"""How ComfyUI marks a quantized module: JSON in its tensor `comfy_quant`, or in the header of the file.

FP8 is stored as elsewhere. Its NVFP4 and MXFP8 have scales in the order of a kernel (`tiled.py`), and its INT8 may be
rotated: names and shapes alone are those of other libraries. Source: ComfyUI's `QUANTIZATION.md`, and comfy-kitchen.
"""

from collections.abc import Mapping
from typing import Any

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.encodings.encoded import StoredModule
from eckart.checkpoint.encodings.tiled import TILED
from eckart.checkpoint.json_files import parse_json

MARKER = "comfy_quant"
_IN_HEADER = "_quantization_metadata"
_LIMIT_BYTES = 2**16
_AS_ELSEWHERE = ("float8_e4m3fn", "float8_e5m2")


def stated_in_headers(stored: Checkpoint) -> dict[str, Any]:
    """What the headers of the files state about the encoding of modules, by their names."""
    layers: dict[str, Any] = {}
    for texts in stored.metadata.values():
        if _IN_HEADER in texts:
            layers |= _object(_object(texts[_IN_HEADER]).get("layers"))
    return layers


def stated_of(module: StoredModule, in_headers: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ComfyUI states about the encoding of a module; None if it did not write it."""
    info = module.leaves.get(MARKER)
    if info is not None:
        return _object(module.stored.read_bytes(info.name) if info.nbytes <= _LIMIT_BYTES else b"")
    return _object(in_headers[module.name]) if module.name in in_headers else None


def comfyui_fault(stated: Mapping[str, Any] | None) -> str | None:
    """Why codes that ComfyUI wrote are not what their names and shapes say; None if they are."""
    if stated is None:
        return None
    changes = sorted(key for key, value in stated.items() if "rot" in key and value)
    if stated.get("format") in (*_AS_ELSEWHERE, *TILED) and not changes:
        return None
    what = " with ".join([str(stated.get("format"))[:40], *changes])
    return f"{what} of ComfyUI, which orders or rotates codes in its own way; dequantize it with comfy-kitchen"


def _object(value: Any) -> dict[str, Any]:
    """A JSON object, given as such or as text; {} for anything else."""
    if isinstance(value, (bytes, str)):
        try:
            value = parse_json(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}
