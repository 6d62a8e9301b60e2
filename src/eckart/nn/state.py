"""A live model's adapter as a value, and the other way round."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import MismatchError
from eckart.formats.peft_config import is_trained_bias
from eckart.nn.injection import (
    Injection,
    adapted_modules,
    check_biases_are_free,
    check_name,
    give_biases,
    own_parameters,
    put_in,
    record_of,
    report,
)
from eckart.nn.targets import Target, base_modules, fault_of, paths_of, sizes_of, wrapper_of

_PEFT_BIAS = {"none": "none", "lora-only": "lora_only", "all": "all"}


def adapter_of(model: nn.Module, name: str = "default") -> Adapter:
    """An adapter of a model as a value that is saved, resized or merged; its tensors are copies on their devices.

    Factors that did not start at zero become plain ones of twice the rank: B·A − B₀·A₀ = [B, −B₀]·[A; A₀].

    Raises:
        MismatchError: the model has no such adapter.
    """
    layers = {path: module.layer(name) for path, module in adapted_modules(model).items() if name in module.adapters}
    if not layers:
        known = sorted({other for module in adapted_modules(model).values() for other in module.adapters})
        msg = f"the model has no adapter {name!r}; there are {', '.join(known) or 'none'}"
        raise MismatchError(msg)
    record = record_of(model)
    biases, config = {}, {}
    if record is not None and record.bias_owner == name:
        own = own_parameters(model)
        biases = {path: own[path].detach().clone() for path in record.biases}
        config = {"bias": _PEFT_BIAS[record.bias]}
    base = getattr(getattr(model, "config", None), "_name_or_path", None) or None
    return Adapter(layers, biases, base, _task_type(model), config)


def save_adapter(model: nn.Module, path: str | Path, *, name: str = "default", force: bool = False) -> Adapter:
    """Write an adapter of a model as a PEFT folder, whole or not at all.

    Raises:
        OutputError: `path` exists and `force` is not given, or cannot be written.
        MismatchError: the model has no such adapter.
    """
    adapter = adapter_of(model, name)
    adapter.save(path, force=force)
    return adapter


def inject_adapter(
    model: nn.Module, adapter: Adapter, *, name: str = "default", dropout: float = 0.0, trainable: bool = True
) -> Injection:
    """Put a finished adapter into a model, where it computes, and trains on from where it is.

    Args:
        model: its modules carry the adapter's names, or these names behind the prefix of the whole model.
        adapter: such as `load_adapter` gives; its factors are copied, to float32 or wider. Biases that were trained
            with it come along, other tensors saved whole are refused.
        name: that it gets in the model.
        dropout: while it trains on.
        trainable: whether it trains.

    Raises:
        MismatchError: it does not fit the model; every fault is listed.
    """
    check_name(model, name)
    modules, own = base_modules(model), own_parameters(model)
    places, prefix = paths_of(modules), getattr(model, "base_model_prefix", "")
    targets: list[Target] = []
    layers: dict[str, AdapterLayer] = {}
    biases: dict[str, torch.Tensor] = {}
    faults: list[str] = []
    for tensor_name, tensor in adapter.modules_to_save.items():
        path = tensor_name if tensor_name in own else f"{prefix}.{tensor_name}"
        if not is_trained_bias(tensor_name, adapter):
            faults.append(f"{tensor_name}: a tensor saved whole is not put into a live model; eckart merge")
        elif path not in own or own[path].shape != tensor.shape:
            faults.append(f"{tensor_name}: the model has no such bias, of shape {tuple(tensor.shape)}")
        else:
            biases[path] = tensor
    for module_name, layer in adapter.items():
        path = module_name if module_name in modules else f"{prefix}.{module_name}"
        found = wrapper_of(modules[path]) if path in modules else None
        if found is None:
            faults.append(f"{module_name}: the model has no such module that an adapter fits")
            continue
        wrapper, kind = found
        wanted, given = sizes_of(modules[path], kind), (layer.lora_B.shape[0], layer.lora_A.flatten(1).shape[1])
        fault = fault_of(model, path, modules[path])
        if kind != layer.kind or wanted != given:
            fault = f"an update of a {layer.kind}, {given}; the model's is a {kind}, {wanted}"
        if fault:
            faults.append(f"{module_name}: {fault}")
        target = Target(places[modules[path]], modules[path], wrapper, kind, layer.rank)
        targets.append(target)
        layers[target.path] = _copied(layer)
    if faults:
        msg = "the adapter does not fit the model"
        raise MismatchError.listing(msg, faults)
    if biases:
        check_biases_are_free(model)
    put_in(model, targets, layers, name=name, dropout=dropout, trainable=trainable)
    if biases:
        give_biases(model, biases, "all" if adapter.config["bias"] == "all" else "lora-only", name)
        with torch.no_grad():
            for path, tensor in biases.items():
                own[path].copy_(tensor)
    return report(model, name)


def _copied(layer: AdapterLayer) -> AdapterLayer:
    """The layer with tensors of its own, wide enough to be trained."""
    tensors = {
        part: tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        for part, tensor in layer.tensors().items()
    }
    return replace(layer, **tensors)


def _task_type(model: nn.Module) -> str | None:
    """PEFT's task type, from the class that transformers chose."""
    kind = type(model).__name__
    ends = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS"}
    ends |= {"ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS"}
    ends |= {"ForConditionalGeneration": "SEQ_2_SEQ_LM"}
    return next((task for end, task in ends.items() if kind.endswith(end)), None)
