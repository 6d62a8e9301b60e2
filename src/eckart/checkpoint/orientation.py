"""Whether a matrix is stored as (out, in) or (in, out): from shapes and the model type, or unknown."""

import re
from collections.abc import Collection, Mapping
from functools import cached_property
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
_DOWN = re.compile(r"(?:down[^.]*|output_linear|w2[^.]*|fc2)$")  # what projects back to the hidden size
_EXPERT_MODULES = {"input_linear", "output_linear"}


def is_expert(info: TensorInfo) -> bool:
    """Whether the tensor stacks the matrices of several experts."""
    parts = info.name.removesuffix(".weight").split(".")
    return len(info.shape) == 3 and ("experts" in parts or parts[-1] in _EXPERT_MODULES)


def model_types(config: Mapping[str, Any]) -> set[str]:
    """The model type of a config and of its sub-configs (text_config, decoder ...)."""
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    return {part["model_type"] for part in parts if isinstance(part.get("model_type"), str)}


class Orientations:
    """How the tensors of one checkpoint are stored. What follows from all of them is computed once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._types = model_types(checkpoint.config)

    def of(self, info: TensorInfo, kind: str) -> tuple[bool, bool | None]:
        """Whether a tensor's matrices are stored (in, out), and whether a PEFT adapter's factors are swapped there."""
        if kind == "expert":
            transposed = self._expert_is_transposed(info)
            if transposed and self._types.isdisjoint(_TRANSPOSED_EXPERTS):
                return True, None
            return bool(transposed), transposed and self._types.isdisjoint(_UNMARKED_EXPERTS)
        is_square = len(info.shape) == 2 and info.shape[0] == info.shape[1]
        if kind == "linear" and is_square and not (self._conv1d_signs or self._is_surely_linear(info)):
            return False, None
        return kind == "conv1d", kind == "conv1d"

    @cached_property
    def has_conv1d(self) -> bool:
        """Whether c_attn and its like are stored (in, out). nanoGPT has the same names with plain Linear."""
        return not self._types.isdisjoint(_CONV1D_MODELS) or any(self._conv1d_signs)

    @cached_property
    def _conv1d_signs(self) -> list[bool]:
        """What the shapes of modules named like GPT-2's show of each: whether it is stored as (in, out)."""
        found = []
        for name, info in self._checkpoint.tensors.items():
            module, _, leaf = name.rpartition(".")
            last = module.rpartition(".")[2]
            if last not in CONV1D_MODULES or leaf != "weight" or len(info.shape) != 2 or info.shape[0] == info.shape[1]:
                continue
            rows, columns = info.shape
            if outputs := outputs_by_bias(info, self._checkpoint):
                found.append(outputs == "columns")
            elif last == "c_attn" and 3 in (rows / columns, columns / rows):
                found.append(rows < columns)
        return found

    def _is_surely_linear(self, info: TensorInfo) -> bool:
        """Whether a square matrix is certainly that of an nn.Linear: by its module or the model type."""
        return info.name.removesuffix(".weight") in self._checkpoint.kinds or self._is_in_transformers

    @cached_property
    def _is_in_transformers(self) -> bool:
        """Whether transformers, which is not imported, has a model of a type of the config."""
        folder = transformers_folder()
        models = {each.name for each in (folder / "models").iterdir() if each.is_dir()} if folder else set()
        return not models.isdisjoint(each.replace("-", "_") for each in self._types)

    def _expert_is_transposed(self, info: TensorInfo) -> bool | None:
        """Whether experts are stored (expert, in, out), by hidden size, model type and siblings; None if undecided."""
        config = self._checkpoint.config
        text = config.get("text_config")
        hidden = {config.get("hidden_size"), text.get("hidden_size") if isinstance(text, dict) else None}
        by_size = _transposed_by_size(info, hidden)
        if by_size is not None:
            return by_size
        if not self._types.isdisjoint(_TRANSPOSED_EXPERTS):
            return True
        if info.shape[1] != info.shape[2]:
            return False
        answers = self._expert_signs.get((_owner(info), info.shape[1]), set())
        return next(iter(answers)) if len(answers) == 1 else None

    @cached_property
    def _expert_signs(self) -> dict[tuple[str, int], set[bool]]:
        """Owner and hidden size -> whether the owner's experts of other sizes would be transposed with that size."""
        signs: dict[tuple[str, int], set[bool]] = {}
        for info in filter(is_expert, self._checkpoint.tensors.values()):
            for size in info.shape[1:]:
                if (sign := _transposed_by_size(info, {size})) is not None:
                    signs.setdefault((_owner(info), size), set()).add(sign)
        return signs


def outputs_by_bias(info: TensorInfo, checkpoint: Checkpoint) -> Literal["rows", "columns"] | None:
    """Where the bias of a module shows the outputs of its weight; None without a bias, or if the weight is square."""
    bias = checkpoint.tensors.get(f"{info.name.removesuffix('.weight')}.bias")
    if bias is None or len(info.shape) != 2 or info.shape[0] == info.shape[1]:
        return None
    rows, columns = info.shape
    return "rows" if bias.shape == (rows,) else "columns" if bias.shape == (columns,) else None


def transformers_folder() -> Path | None:
    """Where transformers is installed; it is not imported, which takes seconds."""
    spec = find_spec("transformers")
    return Path(spec.origin).parent if spec and spec.origin else None


def _owner(info: TensorInfo) -> str:
    """The module that a tensor belongs to."""
    return info.name.rpartition(".")[0]


def _transposed_by_size(info: TensorInfo, hidden: Collection[Any]) -> bool | None:
    first, second = (size in hidden for size in info.shape[1:])
    return None if first == second else first != bool(_DOWN.search(info.name.removesuffix(".weight")))
