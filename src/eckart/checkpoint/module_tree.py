"""Names of tensors in files, and of the same tensors in the module tree of transformers 5, which PEFT's adapters use.

The two differ where a library version moved modules: a vision-language model's `language_model.model.layers` became
`model.language_model.layers`, Granite-MoE's `input_linear` became `experts.gate_up_proj`. Source: transformers'
`conversion_mapping.py`, of which a few rules are built in, so that they work without it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.orientation import model_types, transformers_folder

_LLAVA = (
    (r"^language_model\.lm_head(?=$|\.)", "lm_head"),
    (r"^(?:model\.)?language_model\.(?:model\.)?", "model.language_model."),
    (r"^(?=(?:vision_tower|vision_model|image_tower|video_tower|multi_modal_projector|image_newline)\b)", "model."),
)
_QWEN_VL = ((r"^(?=visual\.)", "model."), (r"^model\.(?!language_model\.|visual\.)", "model.language_model."))
_GRANITE_MOE = (
    (r"(?<=\bblock_sparse_moe)\.input_linear(?:\.weight)?(?=$|\[)", ".experts.gate_up_proj"),
    (r"(?<=\bblock_sparse_moe)\.output_linear(?:\.weight)?(?=$|\[)", ".experts.down_proj"),
    (r"(?<=\bblock_sparse_moe)\.router\.layer(?=$|\.)", ".router"),
)
_ARIA = (
    (r"\.experts\.fc1(?:\.weight)?(?=$|\[)", ".experts.gate_up_proj"),
    (r"\.experts\.fc2(?:\.weight)?(?=$|\[)", ".experts.down_proj"),
)
_RULES = {
    **dict.fromkeys(
        (
            *(
                "llava",
                "llava_next",
                "llava_next_video",
                "llava_onevision",
                "vipllava",
                "video_llava",
                "gemma3",
            ),
            *("mistral3", "paligemma", "aya_vision", "got_ocr2", "internvl", "mllama", "fuyu"),
        ),
        _LLAVA,
    ),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _QWEN_VL),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoehybrid"), _GRANITE_MOE),
    "aria": (*_LLAVA, *_ARIA),
    "aria_text": _ARIA,
    "nemotron_h": ((r"^backbone\.", "model."),),
    "gpt_neox": ((r"^embed_out(?=$|\.)", "lm_head"),),
}
_FLOATS = ("Infinity", "-Infinity", "NaN")


def tree_name(name: str, config: Mapping[str, Any]) -> str:
    """The name in the module tree of a tensor, or a module, that a file names so.

    Args:
        name: with or without `.weight`, and with the index of an expert if it has one.
        config: of the model.
    """
    for pattern, new in () if "auto_map" in config else _RULES.get(str(config.get("model_type")), ()):
        name = re.sub(pattern, new, name, count=1)
    return name


@dataclass(frozen=True)
class TreeNaming:
    """How a checkpoint's names become those of the module tree.

    Attributes:
        renamed: the name in the tree of a tensor or a module.
        split: tensor in the files -> endings of the names of the tensors in which loading divides it.
    """

    renamed: Callable[[str], str]
    split: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __call__(self, name: str) -> str:
        """The name in the tree."""
        return self.renamed(name)


def tree_naming(checkpoint: Checkpoint) -> TreeNaming:
    """The naming of a checkpoint, by the rules here, or by transformers' own tables."""
    if naming := naming_by_rules(checkpoint):
        return TreeNaming(naming)
    tensors, split = names_in_transformers(checkpoint)
    moved = tensors | {old.removesuffix(".weight"): new.removesuffix(".weight") for old, new in tensors.items()}

    def renamed(name: str) -> str:
        owner, bracket, index = name.partition("[")
        return moved.get(owner, owner) + bracket + index

    return TreeNaming(renamed, split)


def naming_by_rules(checkpoint: Checkpoint) -> Callable[[str], str] | None:
    """`tree_naming` by the rules here, or of a model that needs none; None if it needs transformers' tables."""
    is_known = checkpoint.config.get("model_type") in _RULES or not _is_in_tables(checkpoint.config)
    return partial(tree_name, config=checkpoint.config) if is_known else None


def core_name(name: str) -> str:
    """A name without the parts by which library versions, and text-only and multimodal classes, differ."""
    return re.sub(r"(?:^|(?<=\.))(?:model|language_model|text_model)\.", "", name)


def names_in_transformers(checkpoint: Checkpoint) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Names by transformers' own tables, without those that loading joins.

    Returns:
        Name in the files -> name in the tree, and name in the files -> endings of the names of the tensors in which
        loading divides it. Both are empty if transformers is not installed, or does not know the class.
    """
    if not _is_in_tables(checkpoint.config):
        return {}, {}
    try:
        import torch
        import transformers
        from huggingface_hub.errors import StrictDataclassError
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:
        return {}, {}
    names = checkpoint.config.get("architectures") or [""]
    model_class = getattr(transformers, str(names[0]), None)
    if model_class is None or "auto_map" in checkpoint.config:
        return {}, {}
    try:
        with torch.device("meta"):
            model = model_class(model_class.config_class.from_dict(_with_floats(checkpoint.config)))
        transforms = get_model_conversion_mapping(model)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, StrictDataclassError):
        return {}, {}  # a config that this version of transformers does not load
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    parts = {source: each.target_patterns for each in converters for source in each.source_patterns}
    state = model.state_dict()
    found: dict[str, list[str]] = {}
    split: dict[str, list[str]] = {}
    for name in checkpoint.tensors:
        new, source = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if source is not None and len(parts[source]) > 1:
            split[name] = [part.removesuffix(".weight") for part in parts[source]]
        else:
            found.setdefault(new, []).append(name)
    return {olds[0]: new for new, olds in found.items() if len(olds) == 1 and new in state}, split


def _with_floats(config: Any) -> Any:
    """A config with the numbers that JSON lacks, which transformers writes as `{"__float__": "Infinity"}`."""
    if isinstance(config, Mapping):
        tagged = config.get("__float__") if len(config) == 1 else None
        return float(tagged) if tagged in _FLOATS else {key: _with_floats(value) for key, value in config.items()}
    return [_with_floats(value) for value in config] if isinstance(config, list) else config


def _is_in_tables(config: Mapping[str, Any]) -> bool:
    """Whether transformers' tables may name a model, from their text: importing them takes seconds."""
    text = _tables()
    classes = (
        re.sub(r"(?:For|LMHead|With)[A-Z].*|Model$", "", str(name)) for name in config.get("architectures") or ()
    )
    return any(f'"{name}"' in text for name in (*model_types(config), *(f"{stem}Model" for stem in classes)))


@lru_cache
def _tables() -> str:
    folder = transformers_folder()
    file = folder / "conversion_mapping.py" if folder else None
    return file.read_text("utf-8") if file and file.is_file() else ""
