"""Names of modules in mlx-lm's models, by model type, and back to those of the model's modules.

Most names are equal. mlx-lm stacks the experts of a mixture as `switch_mlp`, and some models begin differently. A model
type that is not listed here is refused: mlx-lm changes the values of some models' weights too. Source: `sanitize` in
each of mlx-lm's models; the types listed were compared with mlx-lm 0.32.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from eckart.adapter.adapter import Adapter, AdapterLayer
from eckart.adapter.outline import LayerKind, LayerOutline, TensorOutline
from eckart.checkpoint.model_config import read_config
from eckart.checkpoint.naming import is_embedding, is_output_layer
from eckart.formats.model_names import Model
from eckart.formats.peft_experts import expert_of
from eckart.formats.renaming import AnyLayer, Move, Renaming, shaped

_GATED = ("gate_proj", "up_proj", "down_proj")  # mlx-lm's names of an expert's projections


@dataclass(frozen=True)
class _Family:
    """How mlx-lm names the modules of a model type.

    Attributes:
        starts: beginnings of names, in the model and in mlx-lm; on the way back the first pair that fits is used.
        parents: module of the experts, in files and in mlx-lm.
        projections: a file's names of an expert's `gate_proj`, `up_proj` and `down_proj`.
        router: the router's module in mlx-lm, if mlx-lm can adapt it.
        conv1d: whether the linear layers in blocks are GPT-2's Conv1D.
    """

    starts: tuple[tuple[str, str], ...] = (("model.", "model."), ("lm_head", "lm_head"))
    parents: tuple[str, str] | None = None
    projections: tuple[str, str, str] = _GATED
    router: str | None = None
    conv1d: bool = False


_PLAIN = _Family()
_SWITCH = _Family(parents=("mlp.experts", "mlp.switch_mlp"))
_ROUTED = replace(_SWITCH, router="mlp.gate")
_TEXT_TOWER = _Family(
    starts=(
        ("model.language_model.", "language_model.model."),
        ("language_model.model.", "language_model.model."),
        ("lm_head", "language_model.lm_head"),
        ("language_model.lm_head", "language_model.lm_head"),
    )
)
_FAMILIES: Mapping[str, _Family] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
            *("stablelm", "starcoder2", "cohere", "cohere2", "granite", "olmo2", "olmo3", "smollm3", "seed_oss"),
            *("helium", "nemotron", "hunyuan_v1_dense", "ernie4_5", "glm", "glm4"),
        ),
        _PLAIN,
    ),
    "gpt2": _Family(starts=(("transformer.", "model."), ("h.", "model.h."), ("wte", "model.wte")), conv1d=True),
    "gptj": _Family(starts=(("transformer.", "model."), ("lm_head", "lm_head"))),
    "gpt_neox": _Family(starts=(("gpt_neox.layers.", "model.h."), ("gpt_neox.", "model."))),
    "qwen2_moe": _ROUTED,
    "qwen3_moe": _ROUTED,
    "olmoe": _ROUTED,
    "glm4_moe": _SWITCH,
    "dots1": _Family(parents=("mlp.experts", "mlp.experts")),
    "mixtral": _Family(
        parents=("block_sparse_moe.experts", "block_sparse_moe.switch_mlp"),
        projections=("w1", "w3", "w2"),
        router="block_sparse_moe.gate",
    ),
    **dict.fromkeys(("gemma3", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"), _TEXT_TOWER),
}
_UNKNOWN = (
    "mlx-lm's names depend on the model's type, which is not known: give the model as `base`, or its type as `family`, "
    "such as llama"
)


def from_modules(adapter: Adapter, model: Model | None) -> Renaming:
    """From the names of the model's modules to mlx-lm's; experts in any layout become slices of a stack."""
    family, faults = _family(adapter, model)
    if family is None:
        return Renaming([], faults)
    moves: list[Move] = []
    outlines = adapter.outline()
    for name, layer in outlines.items():
        try:
            moves += _moves_to_mlx(name, layer, family)
        except ValueError as fault:
            faults.append(f"{name}: {fault}")
    faults += [f"{move.new}: {' and '.join(move.old)} have this name" for move in _repeated(moves)]
    vocabulary = [name for name in outlines if is_embedding(name) or is_output_layer(name)]
    if vocabulary and not faults:
        tied, faults = _tied(model)
        if tied:
            dropped, faults = _one_of_two(adapter, vocabulary)
            moves = [move for move in moves if move.old != (dropped,)]
    return Renaming(moves, faults)


def to_modules(adapter: Adapter, model: Model | None) -> Renaming:
    """From mlx-lm's names to those of the model's modules, each expert under the name that it has in files."""
    family, faults = _family(adapter, model)
    if family is None:
        return Renaming([], faults)
    moves: list[Move] = []
    embeddings = []
    for name, layer in adapter.outline().items():
        try:
            module = _from_stack(name, family) if layer.kind == "expert" else _restarted(name, _back(family))
        except ValueError as fault:
            faults.append(f"{name}: {fault}")
            continue
        moves.append(_fitted(module, name, layer, family, model))
        if layer.kind == "embedding":
            embeddings.append((module, name))
    if embeddings and not faults:
        tied, faults = _tied(model)
        if tied and model is not None:
            heads = [
                module for module, view in model.views.items() if view.kind == "embedding" and is_output_layer(module)
            ]
            moves += [Move(head, (name,), _as_head, _as_head_outline) for _, name in embeddings for head in heads]
    return Renaming(moves, faults)


def _family(adapter: Adapter, model: Model | None) -> tuple[_Family | None, list[str]]:
    """The names of the adapter's model, from the model's config or the one that the adapter names."""
    config = dict(model.config) if model else {}
    if not config and adapter.base_model:
        folder = Path(adapter.base_model).expanduser()
        config = read_config(folder if folder.is_dir() else None)
    kind = config.get("model_type")
    if kind is None:
        return None, [_UNKNOWN]
    if kind not in _FAMILIES:
        listed = ", ".join(sorted(_FAMILIES))
        return None, [f"how mlx-lm names and stores the weights of {kind} is not known, only of {listed}"]
    return _FAMILIES[kind], []


def _moves_to_mlx(name: str, layer: LayerOutline, family: _Family) -> list[Move]:
    """The layers of one layer in mlx-lm; ValueError says why there is none."""
    if layer.kind == "expert" and (expert := expert_of(name)) is not None:
        owner, _, leaf = expert[0].rpartition(".")
        stack, index = f"{_stack(owner, family)}", expert[1]
        if leaf == "down_proj":
            return [_move(f"{stack}.down_proj[{index}]", name, "expert")]
        if leaf != "gate_up_proj" or len(layer.lora_B) % 2:
            msg = f"{leaf} is not a parameter of the experts that mlx-lm stacks"
            raise ValueError(msg)
        return [
            Move(f"{stack}.{part}[{index}]", (name,), partial(_half, half=half), _half_outline)
            for half, part in enumerate(("gate_proj", "up_proj"))
        ]
    if layer.kind == "expert":
        module = name.removesuffix(".weight")
        is_router = re.search(r"\.\d+\.(mlp|block_sparse_moe)\.gate$", module)
        if family.router is None or not is_router or module == name:
            msg = "a parameter that is no module in mlx-lm"
            raise ValueError(msg)
        new = re.sub(r"(mlp|block_sparse_moe)\.gate$", family.router, _restarted(module, family.starts))
        return [_move(new, name, "linear")]
    if match := re.fullmatch(r"(.+\.experts)\.(\d+)\.(\w+)", name):
        if match[3] not in family.projections:
            msg = f"an expert of this model type has {', '.join(family.projections)}"
            raise ValueError(msg)
        leaf = _GATED[family.projections.index(match[3])]
        return [_move(f"{_stack(match[1], family)}.{leaf}[{match[2]}]", name, "expert")]
    return [_move(_restarted(name, family.starts), name, "embedding" if layer.kind == "embedding" else "linear")]


def _move(new: str, old: str, kind: LayerKind) -> Move:
    """A layer that only gets another name and kind."""
    same = partial(_same, kind=kind)
    return Move(new, (old,), same, same)


def _stack(owner: str, family: _Family) -> str:
    """mlx-lm's module for the experts in a module of the model; ValueError if the model type has none."""
    layer = re.match(r"(.*\.\d+)\.(?:mlp|block_sparse_moe)\.experts$", owner)
    if family.parents is None or layer is None:
        msg = "experts are not known in mlx-lm's model of this type"
        raise ValueError(msg)
    return f"{_restarted(f'{layer[1]}.', family.starts)}{family.parents[1]}"


def _from_stack(name: str, family: _Family) -> str:
    """The name in files of an expert in a stack of mlx-lm; ValueError if the model type has no such stack."""
    module, index = expert_of(name) or (name, 0)
    parent, _, leaf = module.rpartition(".")
    if family.parents is None or leaf not in _GATED or not parent.endswith(f".{family.parents[1]}"):
        msg = "experts are not known in mlx-lm's model of this type"
        raise ValueError(msg)
    owner = _restarted(parent.removesuffix(family.parents[1]), _back(family))
    return f"{owner}{family.parents[0]}.{index}.{family.projections[_GATED.index(leaf)]}"


def _back(family: _Family) -> list[tuple[str, str]]:
    return [(new, old) for old, new in family.starts]


def _restarted(name: str, starts: Sequence[tuple[str, str]]) -> str:
    """A name with another beginning, by the first pair that fits; ValueError if there is none."""
    for old, new in starts:
        if name.startswith(old):
            return new + name.removeprefix(old)
    msg = f"no module of this model type: names begin with {', '.join(dict.fromkeys(old for old, _ in starts))}"
    raise ValueError(msg)


def _fitted(module: str, name: str, layer: LayerOutline, family: _Family, model: Model | None) -> Move:
    """One layer under its module's name and in its kind."""
    if layer.kind == "expert":
        return _move(module, name, "linear")
    if family.conv1d and layer.kind == "linear" and ".h." in module:
        return _move(module, name, "conv1d")
    fit = partial(shaped, view=model.views.get(module) if model else None)
    return Move(module, (name,), fit, fit)


def _repeated(moves: Sequence[Move]) -> list[Move]:
    """Moves to a name that an earlier one has."""
    seen: set[str] = set()
    return [move for move in moves if move.new in seen or seen.add(move.new)]


def _tied(model: Model | None) -> tuple[bool, list[str]]:
    """Whether the model computes its logits with the embedding, and a fault if that is not known."""
    if model is None or not model.views:
        fault = (
            "an update of the embeddings or the output layer: mlx-lm applies it to both where they share a weight, "
            "which only the model's weights show: give the model as `base`"
        )
        return False, [fault]
    return bool(_tied_heads(model)), []


def _tied_heads(model: Model) -> list[str]:
    """Output layers that share the weight of an embedding."""
    return [module for module, view in model.views.items() if view.kind == "embedding" and is_output_layer(module)]


def _one_of_two(adapter: Adapter, vocabulary: Sequence[str]) -> tuple[str, list[str]]:
    """Of a tied model the output layer, which gets the embedding's update in mlx-lm; a fault if its own differs."""
    heads = [name for name in vocabulary if is_output_layer(name)]
    embeddings = [name for name in vocabulary if name not in heads]
    if len(heads) == len(embeddings) == 1:
        head, embedding = adapter[heads[0]], _as_head(adapter[embeddings[0]])
        if head.outline() == embedding.outline() and all(
            bool((tensor == embedding.tensors()[part]).all()) for part, tensor in head.tensors().items()
        ):
            return heads[0], []
    fault = (
        f"{', '.join(vocabulary)}: the model's embedding and output layer share a weight, and mlx-lm applies one "
        "update to both; this adapter does not update them equally"
    )
    return "", [fault]


def _same(layer: AnyLayer, kind: LayerKind) -> AnyLayer:
    """The same update of a module of this kind."""
    return replace(layer, kind=kind)


def _half(layer: AdapterLayer, half: int) -> AdapterLayer:
    """The first or the second half of the outputs of a fused gate_up_proj."""
    outputs = len(layer.lora_B) // 2
    return replace(layer, lora_B=layer.lora_B[half * outputs : (half + 1) * outputs])


def _half_outline(layer: LayerOutline) -> LayerOutline:
    outputs, rank = layer.lora_B.shape
    return replace(layer, lora_B=TensorOutline((outputs // 2, rank), layer.lora_B.dtype))


def _as_head(layer: AdapterLayer) -> AdapterLayer:
    """An embedding's update as that of the output layer with the same weight."""
    return replace(layer, lora_A=layer.lora_B.T.contiguous(), lora_B=layer.lora_A.T.contiguous(), kind="linear")


def _as_head_outline(layer: LayerOutline) -> LayerOutline:
    A, B = layer.lora_A, layer.lora_B
    lora_A, lora_B = TensorOutline(B.shape[::-1], B.dtype), TensorOutline(A.shape[::-1], A.dtype)
    return replace(layer, lora_A=lora_A, lora_B=lora_B, kind="linear")
