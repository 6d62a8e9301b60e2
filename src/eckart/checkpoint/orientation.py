"""Which way a matrix is stored, (out, in) or (in, out): from shapes and the model type, or unknown."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo

_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"}
CONV1D_MODULES = {"c_attn", "c_proj", "c_fc", "q_attn"}
_UNMARKED_EXPERTS = {"llama4", "llama4_text"}  # stored (in, out), but PEFT takes the last dimension for the input
_TRANSPOSED_EXPERTS = {
    "aria", "aria_text", "gpt_oss", "openai_privacy_filter", "qwen3_vl_moe", "qwen3_vl_moe_text", *_UNMARKED_EXPERTS
}  # fmt: skip
_EXPERT_MODULES = {"input_linear", "output_linear"}


def is_expert(info: TensorInfo) -> bool:
    """Whether the tensor stacks the matrices of several experts."""
    parts = info.name.removesuffix(".weight").split(".")
    return len(info.shape) == 3 and ("experts" in parts or parts[-1] in _EXPERT_MODULES)


def model_types(config: Mapping[str, Any]) -> set[str]:
    """The model type of a config and of its sub-configs (text_config, decoder ...)."""
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    return {part["model_type"] for part in parts if isinstance(part.get("model_type"), str)}


def orientation(
    info: TensorInfo, kind: str, checkpoint: Checkpoint, evidence: Collection[bool] = ()
) -> tuple[bool, bool | None]:
    """Whether a tensor's matrices are stored (in, out), and whether a PEFT adapter's factors are swapped on them.

    Args:
        info: the tensor.
        kind: its kind.
        checkpoint: where it is.
        evidence: `conv1d_evidence` of the checkpoint, found once for all of its tensors.
    """
    if kind == "expert":
        transposed = _expert_is_transposed(info, checkpoint)
        types = model_types(checkpoint.config)
        if transposed and types.isdisjoint(_TRANSPOSED_EXPERTS):
            return True, None
        return bool(transposed), transposed and types.isdisjoint(_UNMARKED_EXPERTS)
    is_square = len(info.shape) == 2 and info.shape[0] == info.shape[1]
    if kind == "linear" and is_square and not (evidence or _is_surely_linear(info, checkpoint)):
        return False, None
    return kind == "conv1d", kind == "conv1d"


def has_conv1d_modules(checkpoint: Checkpoint, evidence: Collection[bool] | None = None) -> bool:
    """Whether c_attn and its like are stored (in, out). nanoGPT has the same names with plain Linear."""
    types = model_types(checkpoint.config)
    return not types.isdisjoint(_CONV1D_MODELS) or any(conv1d_evidence(checkpoint) if evidence is None else evidence)


def conv1d_evidence(checkpoint: Checkpoint) -> list[bool]:
    """What the shapes of modules named like GPT-2's say of each: whether it is stored (in, out)."""
    found = []
    for name, info in checkpoint.tensors.items():
        module, _, leaf = name.rpartition(".")
        last = module.rpartition(".")[2]
        if last not in CONV1D_MODULES or leaf != "weight" or len(info.shape) != 2 or info.shape[0] == info.shape[1]:
            continue
        rows, columns = info.shape
        if outputs := outputs_by_bias(info, checkpoint):
            found.append(outputs == "columns")
        elif last == "c_attn" and 3 in (rows / columns, columns / rows):
            found.append(rows < columns)
    return found


def outputs_by_bias(info: TensorInfo, checkpoint: Checkpoint) -> Literal["rows", "columns"] | None:
    """Where the bias of a module shows the outputs of its weight; None without a bias, or if the weight is square."""
    bias = checkpoint.tensors.get(f"{info.name.removesuffix('.weight')}.bias")
    if bias is None or len(info.shape) != 2 or info.shape[0] == info.shape[1]:
        return None
    rows, columns = info.shape
    return "rows" if bias.shape == (rows,) else "columns" if bias.shape == (columns,) else None


def _is_surely_linear(info: TensorInfo, checkpoint: Checkpoint) -> bool:
    """Whether a square matrix is an nn.Linear's beyond doubt: by its module or the model type."""
    types = model_types(checkpoint.config)
    return info.name.removesuffix(".weight") in checkpoint.kinds or any(map(_is_in_transformers, types))


@lru_cache
def _is_in_transformers(model_type: str) -> bool:
    """Whether transformers, which is not imported, has a model of this type."""
    folder = transformers_folder()
    return folder is not None and (folder / "models" / model_type.replace("-", "_")).is_dir()


def transformers_folder() -> Path | None:
    """Where transformers is installed; it is not imported, which takes seconds."""
    spec = find_spec("transformers")
    return Path(spec.origin).parent if spec and spec.origin else None


def _expert_is_transposed(info: TensorInfo, checkpoint: Checkpoint) -> bool | None:
    """Whether experts are stored (expert, in, out), by the hidden size and the model type; None if nothing decides."""
    config = checkpoint.config
    text = config.get("text_config")
    hidden = {config.get("hidden_size"), text.get("hidden_size") if isinstance(text, dict) else None}
    by_size = _transposed_by_size(info, hidden)
    if by_size is not None:
        return by_size
    types = model_types(config)
    if not types.isdisjoint(_TRANSPOSED_EXPERTS):
        return True
    if info.shape[1] != info.shape[2]:
        return False
    owner = info.name.rpartition(".")[0]
    siblings = [other for name, other in checkpoint.tensors.items() if name.rpartition(".")[0] == owner]
    answers = {_transposed_by_size(other, {info.shape[1]}) for other in siblings if is_expert(other)} - {None}
    return answers.pop() if len(answers) == 1 else None


def _transposed_by_size(info: TensorInfo, hidden: Collection[Any]) -> bool | None:
    first, second = (size in hidden for size in info.shape[1:])
    return None if first == second else first != (".down" in info.name or "output_linear" in info.name)
