"""A live model's adapter as a value, and a value inserted into a live model."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import MismatchError
from eckart.formats.peft_config import is_trained_bias, task_type_of
from eckart.nn.injection import (
    Injection,
    adapted_modules,
    assign_biases,
    base_parameters,
    check_biases_are_free,
    check_name,
    insert,
    original_state,
    report,
)
from eckart.nn.matching import DOES_NOT_FIT, match_layers

_PEFT_BIAS = {"none": "none", "lora-only": "lora_only", "all": "all"}


def adapter_of(model: nn.Module, name: str = "default") -> Adapter:
    """An adapter of a model as a value, to be saved, resized or merged; its tensors are copies on the same devices.

    Factors whose product did not start at zero become factors of twice the rank: B·A − B₀·A₀ = [B, −B₀]·[A; A₀].

    Raises:
        MismatchError: the model has no such adapter.
    """
    layers = {path: module.layer(name) for path, module in adapted_modules(model).items() if name in module.adapters}
    if not layers:
        present = sorted({other for module in adapted_modules(model).values() for other in module.adapters})
        msg = f"the model has no adapter {name!r}; it has {', '.join(present) or 'none'}"
        raise MismatchError(msg)
    original = original_state(model)
    biases, config = {}, {}
    if original is not None and original.bias_owner == name:
        parameters = base_parameters(model)
        biases = {path: parameters[path].detach().clone() for path in original.biases}
        config = {"bias": _PEFT_BIAS[original.bias]}
    base = getattr(getattr(model, "config", None), "_name_or_path", None) or None
    return Adapter(layers, biases, base, task_type_of([type(model).__name__]), config)


def save_adapter(model: nn.Module, path: str | Path, *, name: str = "default", force: bool = False) -> Adapter:
    """Write an adapter of a model as a PEFT folder, completely or not at all.

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
    """Insert an existing adapter into a model, which then computes with it and can continue to train it.

    Args:
        model: its modules have the names in the adapter, or these names after the prefix of the whole model.
        adapter: such as `load_adapter` returns; its factors are copied, to float32 or wider. Biases that were trained
            with it are copied too; other saved tensors are refused (`adapter_applied` takes them).
        name: name of the adapter in the model.
        dropout: dropout probability when it trains.
        trainable: whether it trains.

    Raises:
        MismatchError: the adapter does not fit the model; all faults are listed.
    """
    check_name(model, name)
    targets, faults = match_layers(model, adapter)
    biases, bias_faults = _match_biases(model, adapter)
    if faults + bias_faults:
        raise MismatchError.listing(DOES_NOT_FIT, bias_faults + faults)
    if biases:
        check_biases_are_free(model)
    layers = {target.path: _copied(adapter[layer_name]) for layer_name, target in targets.items()}
    insert(model, list(targets.values()), layers, name=name, dropout=dropout, trainable=trainable)
    if biases:
        assign_biases(model, biases, "all" if adapter.config["bias"] == "all" else "lora-only", name)
        parameters = base_parameters(model)
        with torch.no_grad():
            for path, tensor in biases.items():
                parameters[path].copy_(tensor)
    return report(model, name)


def _match_biases(model: nn.Module, adapter: Adapter) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Trained biases by their paths in the model, and what is wrong with the adapter's saved tensors."""
    parameters, prefix = base_parameters(model), getattr(model, "base_model_prefix", "")
    biases: dict[str, torch.Tensor] = {}
    faults: list[str] = []
    for name, tensor in adapter.modules_to_save.items():
        path = name if name in parameters else f"{prefix}.{name}"
        if not is_trained_bias(name, adapter):
            faults.append(
                f"{name}: a saved tensor replaces a weight, which this cannot do; use adapter_applied or merge"
            )
        elif path not in parameters or parameters[path].shape != tensor.shape:
            faults.append(f"{name}: the model has no such bias of shape {tuple(tensor.shape)}")
        else:
            biases[path] = tensor
    return biases, faults


def _copied(layer: AdapterLayer) -> AdapterLayer:
    """The layer with copies of its tensors, wide enough to be trained."""
    tensors = {
        part: tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        for part, tensor in layer.tensors().items()
    }
    return replace(layer, **tensors)
