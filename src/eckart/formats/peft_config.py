"""`adapter_config.json`, which says what PEFT's tensors mean: reading and writing it.

Rank and alpha apply to all modules unless `rank_pattern` or `alpha_pattern` overrides them: keys there are regexes, so
every name is escaped and anchored when it is written. Source: PEFT's `tuners/lora/config.py`.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline
from eckart.checkpoint.json_files import read_json_object
from eckart.errors import FileFormatError, MismatchError
from eckart.formats.attention_modules import OUT_PROJ
from eckart.formats.peft_patterns import NamePatterns, RegexBudget
from eckart.formats.peft_tokens import FIELD, is_token_rows, tokens_field

_MAX_CONFIG_BYTES = 16 * 2**20
_REFUSED = {
    "megatron_config": "Megatron adapters are not read",
    **dict.fromkeys(
        ("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "use_qalora"),
        "a variant of LoRA that is not a fixed low-rank update of each weight",
    ),
}
_OF_INPUTS = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"),
}
# How lora_B of fused experts is stored, by Unsloth: PEFT's order, or all columns of one expert after another.
_LAYOUT, RANK_MAJOR, BY_EXPERT = "lora_B_layout", "rank_major", "grouped_by_expert"
# Of a trained adapter they say nothing, and of a changed one something false: the layers that PEFT selected, which a
# written config names one by one, and how it initialized them, which may not be possible at another rank.
_OF_TRAINING = {
    *("exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "velora_config"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
}
# These change the base when PEFT loads the adapter: the tensors update the remainder of the base.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
# The fields of PEFT 0.21's LoraConfig.
KNOWN_FIELDS = frozenset(
    {
        "alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping", "base_model_name_or_path", "bias",
        "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
        "init_lora_weights", "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform",
        "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config",
        "megatron_core", "modules_to_save", "monteclora_config", "peft_type", "peft_version", "qalora_group_size",
        "r", "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters", "task_type",
        "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora", "velora_config",
    }
)  # fmt: skip

_TASK_TYPES = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


class PeftConfig(BaseModel):
    """The fields of `adapter_config.json` that decide what the tensors mean; others are passed through."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    r: int = Field(default=8, ge=1, lt=2**31)
    lora_alpha: FiniteFloat = 8
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    fan_in_fan_out: bool = False
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1, lt=2**31)]] = Field(default_factory=dict)
    alpha_pattern: dict[str, FiniteFloat] = Field(default_factory=dict)
    base_model_name_or_path: str | None = None
    task_type: str | None = None

    def rank_of(self, module: str) -> int:
        """The rank of a module; ValueError if regexes in the config could take minutes to match."""
        return self._ranks.value(_adapted_module(module), self.r)

    def alpha_of(self, module: str) -> float:
        """The alpha of a module (errors as `rank_of`)."""
        return float(self._alphas.value(_adapted_module(module), self.lora_alpha))

    def targets(self, module: str) -> bool:
        """Whether the config targets a module itself, rather than a parameter in it (errors as `rank_of`)."""
        return self._targets.value(module, default=False)

    def target_parameters_of(self, module: str) -> list[str]:
        """Names of the module's parameters that the config targets, if it has them.

        A target that names the module too, such as a router's `gate.weight`, precedes one that any module may have.
        """
        suffixes = (module[match.end() :] for match in re.finditer(r"^|\.", module))
        of_module = {leaf for owner in suffixes for leaf in self._parameters.get(owner, ())}
        return sorted(of_module or self._parameters.get("", ()))

    @cached_property
    def expert_layouts(self) -> set[Any]:
        """What the fields beyond PEFT's state about the columns of lora_B of fused experts."""
        extra = self.model_extra or {}
        return {fields[_LAYOUT] for fields in (extra, *extra.values()) if _states_layout(fields)}

    @cached_property
    def _budget(self) -> RegexBudget:
        return RegexBudget()

    @cached_property
    def _ranks(self) -> NamePatterns:
        return NamePatterns(self.rank_pattern, self._budget)

    @cached_property
    def _alphas(self) -> NamePatterns:
        return NamePatterns(self.alpha_pattern, self._budget)

    @cached_property
    def _targets(self) -> NamePatterns:
        targets = self.target_modules or []
        # A text is a regex of the full name, a list contains ends of names.
        keys = [f"^(?:{targets})"] if isinstance(targets, str) else map(re.escape, targets)
        return NamePatterns(dict.fromkeys(keys, True), self._budget)

    @cached_property
    def _parameters(self) -> dict[str, list[str]]:
        owners: dict[str, list[str]] = {}
        for target in self.target_parameters or ():
            owner, _, leaf = target.rpartition(".")
            owners.setdefault(owner, []).append(leaf)
        return owners


def _states_layout(fields: Any) -> bool:
    return isinstance(fields, Mapping) and isinstance(fields.get(_LAYOUT), str)


def _adapted_module(module: str) -> str:
    """The module whose rank and alpha a module in PEFT's file has: of an attention's `out_proj` the attention's."""
    return module.removesuffix(OUT_PROJ)


def read_config(file: Path) -> PeftConfig:
    """The config in a file.

    Raises:
        FileFormatError: it is damaged, or describes an adapter that is not supported; every fault is listed.
    """
    fields = read_json_object(file, most_bytes=_MAX_CONFIG_BYTES)
    if (kind := fields.get("peft_type")) != "LORA" and isinstance(kind, str):
        remedy = "merge it with PEFT (merge_and_unload), and extract a LoRA from the merged model"
        if kind in _OF_INPUTS:
            remedy = "it changes a model's inputs, not its weights, which no LoRA can express"
        msg = f"{file}: peft_type is {kind}; only LORA adapters are supported; {remedy}"
        raise FileFormatError(msg)
    try:
        config = PeftConfig.model_validate(fields)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        msg = f"{file}: not a PEFT config"
        raise FileFormatError.listing(msg, faults) from error
    extra = config.model_extra or {}
    faults = [f"{field}: {reason}" for field, reason in _REFUSED.items() if extra.get(field)]
    if str(extra.get("init_lora_weights")).lower().startswith(_BASE_CHANGING):
        faults.append(
            f"init_lora_weights is {extra['init_lora_weights']!r}: the update is for the base as PEFT changes it; save "
            "the adapter again with PEFT's path_initial_model_for_weight_conversion"
        )
    if len(config.expert_layouts) > 1 or not config.expert_layouts <= {RANK_MAJOR, BY_EXPERT}:
        listed = ", ".join(sorted(map(str, config.expert_layouts)))
        faults.append(f"{_LAYOUT} is {listed}; expected {RANK_MAJOR} or {BY_EXPERT}")
    if faults:
        msg = f"{file}: this adapter cannot be read"
        raise FileFormatError.listing(msg, faults)
    return config


def config_of(adapter: AdapterOutline) -> dict[str, Any]:
    """The `adapter_config.json` that describes an adapter, with no more fields than PEFT needs.

    Args:
        adapter: an outline in PEFT's terms, where all experts of a parameter are one layer.

    Raises:
        MismatchError: layers that one PEFT config cannot describe.
    """
    layers = list(adapter.values())
    if not layers:
        msg = "an adapter without layers cannot be written"
        raise MismatchError(msg)
    for part, kind in (("magnitude", "DoRA layers"), ("bias", "layers with a trained bias (lora_bias)")):
        without = [name for name, layer in adapter.items() if part not in layer.tensors()]
        if 0 < len(without) < len(layers):
            msg = f"PEFT cannot mix {kind} with plain ones: {', '.join(without)}"
            raise MismatchError(msg)
    rslora = all(layer.rslora for layer in layers)
    ranks = {name: layer.rank for name, layer in adapter.items()}
    # Where layers differ in the rule, alpha / rank can express the scale of each of them.
    alphas = {
        name: float(layer.alpha if rslora else layer.scaling * layer.rank if layer.rslora else layer.alpha)
        for name, layer in adapter.items()
    }
    # Servers reserve memory for `r` and refuse an adapter whose layers exceed it.
    rank, alpha = max(ranks.values()), Counter(alphas.values()).most_common(1)[0][0]
    bias = adapter.config.get("bias", "none")
    config = {
        **{field: value for field, value in adapter.config.items() if _is_kept(field, value)},
        "peft_type": "LORA",
        "base_model_name_or_path": hub_name_or_absolute_path(adapter.base_model),
        "task_type": adapter.task_type,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": {name: _plain(value) for name, value in _pattern(alphas, alpha).items()},
        "target_modules": [name for name, layer in adapter.items() if layer.kind != "expert"],
        "lora_dropout": 0.0,
        "bias": bias,
        "fan_in_fan_out": any(layer.kind == "conv1d" for layer in layers),
    }
    optional = {
        "target_parameters": [name for name, layer in adapter.items() if layer.kind == "expert"],
        "modules_to_save": _saved_modules(adapter),
        "use_rslora": rslora,
        "use_dora": layers[0].magnitude is not None,
        "lora_bias": any(layer.bias is not None for layer in layers),
        **tokens_field(adapter.config, adapter.modules_to_save),
    }
    return config | {name: value for name, value in optional.items() if value}


def _is_kept(field: str, value: Any) -> bool:
    """Whether a written config repeats a field of the source's; experts are always written in PEFT's order."""
    return field not in {*_OF_TRAINING, _LAYOUT, FIELD} and not _states_layout(value)


def is_trained_bias(name: str, adapter: Adapter | AdapterOutline) -> bool:
    """Whether a saved tensor is a bias that PEFT trained in place (`bias` other than "none")."""
    return name.endswith(".bias") and adapter.config.get("bias", "none") != "none"


def _saved_modules(adapter: AdapterOutline) -> list[str]:
    """`modules_to_save`: the source's entries as far as they have tensors, and the modules of all others.

    A tensor of an adapted module is in PEFT's base layer, and a bias may be trained in place: neither is an entry.
    """
    saved = (
        name.rpartition(".")[0]
        for name in adapter.modules_to_save
        if not is_trained_bias(name, adapter) and not is_token_rows(name)
    )
    modules = {module for module in saved if module not in adapter}
    entries = adapter.config.get("modules_to_save")
    entries = entries if isinstance(entries, list) else []
    covered = {module: [entry for entry in entries if f".{entry}." in f".{module}."] for module in modules}
    used = [entry for entry in entries if any(entry in found for found in covered.values())]
    return used + sorted(module for module, found in covered.items() if not found)


def task_type_of(model_classes: Iterable[str]) -> str | None:
    """PEFT's task type, from the names of a model's classes in transformers; None if they show none."""
    return next((task for name in model_classes for end, task in _TASK_TYPES.items() if name.endswith(end)), None)


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields of an adapter's config that neither PEFT 0.21 nor eckart knows; they may change what the tensors mean."""
    return sorted(name for name in set(config) - KNOWN_FIELDS - {_LAYOUT} if not _states_layout(config[name]))


def _pattern(values: Mapping[str, Any], common: Any) -> dict[str, Any]:
    """The values that differ from the common one, by an anchored and escaped regex of the whole name.

    For some models of experts PEFT replaces the target `gate`, the router, by its parameter `gate.weight`.
    """
    different = {f"^{re.escape(name)}": value for name, value in values.items() if value != common}
    routers = {rf"{key}\.weight": value for key, value in different.items() if key.endswith(r"\.gate")}
    return different | routers


def _plain(number: float) -> float | int:
    """An integer without its decimal point, as PEFT writes alpha, unless that would take hundreds of digits."""
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def hub_name_or_absolute_path(model: str | None) -> str | None:
    """The name of a model as a config states it: the relative path of a folder would read as a hub name."""
    path = Path(model).expanduser() if model else None
    return os.path.abspath(path) if path and path.exists() else model  # noqa: PTH100 - also takes out `..`
