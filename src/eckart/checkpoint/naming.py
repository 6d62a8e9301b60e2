"""Module names: which patterns and presets match them."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from eckart.errors import MismatchError

# Suffixes, by PEFT's rule: "q_proj" matches "model.layers.3.self_attn.q_proj".
_FUSED = ("qkv_proj", "query_key_value", "Wqkv", "c_attn", "qkv")
_QUERY_VALUE = (
    *("q_proj", "v_proj", "query", "value", "q_lin", "v_lin", "q_attn", "to_q", "to_v"),
    *(f"{block}.{part}" for block in ("SelfAttention", "EncDecAttention") for part in "qv"),
    *_FUSED,
)
_ATTENTION = (
    *_QUERY_VALUE,
    *("k_proj", "o_proj", "out_proj", "key", "k_lin", "out_lin", "to_k", "to_out.0"),
    *(f"{block}.{part}" for block in ("SelfAttention", "EncDecAttention") for part in "ko"),
    *("attention.output.dense", "crossattention.output.dense", "attn.c_proj", "crossattention.c_proj"),
    *("self_attn.dense", "self_attention.dense", "attention.dense"),
)
_MLP = (
    *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "intermediate.dense", "output.dense"),
    *("c_fc", "mlp.c_proj", "fc1", "fc2", "fc_in", "fc_out", "lin1", "lin2", "wi", "wi_0", "wi_1", "wo"),
    *("dense_h_to_4h", "dense_4h_to_h", "w1", "w2", "w3", "ff.net.0.proj", "ff.net.2"),
)
PRESETS = ("attention", "attention-min", "mlp", "all-linear")
_OUTPUT_LAYERS = (
    "lm_head",
    "lm_head.decoder",
    "vocab_projector",
    "embed_out",
    "score",
    "classifier",
    "cls.predictions.decoder",
)
# The router of a mixture of experts is not an nn.Linear in transformers, so PEFT does not adapt it either.
_ROUTERS = ("router", "mlp.gate", "block_sparse_moe.gate")
_EMBEDDINGS = re.compile(
    r"embed_tokens|embed_positions|wte|wpe|shared|embed_in|tokens_embed|positions_embed|tok_embeddings"
    r"|relative_attention_bias|(\w+_)?(?:embeddings?|emb)|embed"
)


def is_embedding(module: str) -> bool:
    """Whether a module with a 2-D weight is an embedding, by the last part of its name."""
    return _EMBEDDINGS.fullmatch(module.rpartition(".")[2]) is not None


def is_output_layer(module: str) -> bool:
    """Whether a module computes the logits, which PEFT's all-linear leaves out."""
    return _ends_with(module, _OUTPUT_LAYERS)


def in_preset(preset: str, module: str) -> bool:
    """Whether a preset contains a linear module of this name."""
    if preset == "all-linear":
        return not is_output_layer(module) and not _ends_with(module, _ROUTERS)
    if preset == "attention-min":
        return _ends_with(module, _QUERY_VALUE)
    if preset == "attention":
        return _ends_with(module, _ATTENTION)
    # BERT's attention.output.dense ends like the MLP's output.dense.
    return _ends_with(module, _MLP) and not _ends_with(module, _ATTENTION)


def shown_names(names: Iterable[str], *, most: int) -> dict[str, str]:
    """Each name as it is shown: of one with more than `most` characters the beginning and the end.

    Names that look the same then are numbered.
    """
    half = most // 2
    shown = {name: name if len(name) <= most else f"{name[:half]}…{name[-half:]}" for name in names}
    counts, seen = Counter(shown.values()), Counter[str]()
    for name, short in shown.items():
        seen[short] += 1
        shown[name] = f"{short} ({seen[short]})" if counts[short] > 1 else short
    return shown


def count_endings(names: Iterable[Sequence[str]]) -> Callable[[Sequence[str]], list[int]]:
    """Count how many of the names, each a sequence of its dotted parts, end with the parts of another.

    Returns:
        a function of such a sequence, whose entry i counts the names that end with its last i + 1 parts; both take time
        linear in the number of parts.
    """
    nodes: dict[tuple[int, str], int] = {}
    counts = [0]

    def count(name: Sequence[str]) -> list[int]:
        path = [0]
        for part in reversed(name):
            path.append(nodes.get((path[-1], part), -1))
        return [0 if node < 0 else counts[node] for node in path[1:]]

    for name in names:
        node = 0
        for part in reversed(name):
            node = nodes.setdefault((node, part), len(counts))
            if node == len(counts):
                counts.append(0)
            counts[node] += 1
    return count


def as_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Patterns of `target` or `exclude` as a tuple; a string is one pattern."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def is_suffix(pattern: str) -> bool:
    """Whether a pattern is a plain dotted name, which matches the modules that end with it."""
    return re.fullmatch(r"[\w-]+(\.[\w-]+)*", pattern) is not None


def matches(pattern: str, module: str) -> bool:
    """PEFT's matching rule: a plain dotted name is a suffix, anything else a regex.

    A suffix consists of complete dotted parts, a regex must match the full name, and a preset's name is the preset.

    Raises:
        MismatchError: the pattern is neither a name nor a regex.
    """
    if pattern in PRESETS:
        return in_preset(pattern, module)
    if is_suffix(pattern):
        return _ends_with(module, [pattern])
    try:
        return re.fullmatch(pattern, module) is not None
    except re.error as error:
        msg = f"{pattern!r} is neither a name nor a regex ({error})"
        raise MismatchError(msg) from None


def nearest_names(name: str, names: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> list[str]:
    """The names most similar to `name`, the nearest first, as suggestions for a message about an unknown name."""
    return difflib.get_close_matches(name, dict.fromkeys(names), n=count, cutoff=cutoff)


def nearest_modules(name: str, modules: Collection[str], *, count: int = 3) -> list[str]:
    """Modules whose names end like `name`, compared over as many dotted parts as it has."""
    parts = name.count(".") + 1
    ends: dict[str, str] = {}
    for module in modules:
        ends.setdefault(".".join(module.split(".")[-parts:]), module)
    if name in ends:
        return [module for module in modules if _ends_with(module, [name])][:count]
    return [ends[end] for end in nearest_names(name, ends, count=count, cutoff=0.4)]


def nearest_patterns(pattern: str, modules: Iterable[str]) -> list[str]:
    """Patterns like one that matches nothing: presets, and ends of modules' names of as many dotted parts as it has."""
    parts = pattern.count(".") + 1
    ends = (".".join(module.split(".")[-parts:]) for module in modules)
    patterns = [each for each in dict.fromkeys([*ends, *PRESETS]) if each != pattern]
    return nearest_names(pattern, patterns, cutoff=0.4) or patterns[:3]


def _ends_with(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)
