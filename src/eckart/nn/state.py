"""A live model's adapter as a value, and the other way round."""

from pathlib import Path

from torch import Tensor, nn

from eckart.adapter import Adapter, AdapterLayer
from eckart.errors import MismatchError
from eckart.nn.inject import Injection, adapted_modules, check_name, put_in, record_of, report
from eckart.nn.targets import Target, base_modules, sizes_of, wrapper_of

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
    biases: dict[str, Tensor] = {}
    if record is not None and record.bias_owner == name:
        own = {path.replace(".base_layer.", "."): parameter for path, parameter in model.named_parameters()}
        biases = {path: own[path].detach().clone() for path in record.biases}
    config = {"bias": _PEFT_BIAS[record.bias]} if biases and record is not None else {}
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
        adapter: such as `load_adapter` gives; biases and other tensors saved whole are refused.
        name: that it gets in the model.
        dropout: while it trains on.
        trainable: whether it trains.

    Raises:
        MismatchError: it does not fit the model; every fault is listed.
    """
    check_name(model, name)
    modules, prefix = base_modules(model), getattr(model, "base_model_prefix", "")
    targets: list[Target] = []
    layers: dict[str, AdapterLayer] = {}
    faults = [
        f"{tensor}: a tensor saved whole is not put into a live model; eckart merge"
        for tensor in adapter.modules_to_save
    ]
    for module_name, layer in adapter.items():
        path = module_name if module_name in modules else f"{prefix}.{module_name}"
        found = wrapper_of(modules[path]) if path in modules else None
        if found is None:
            faults.append(f"{module_name}: the model has no such module that an adapter fits")
            continue
        wrapper, kind = found
        wanted, given = sizes_of(modules[path], kind), (layer.lora_B.shape[0], layer.lora_A.flatten(1).shape[1])
        fault = wrapper.fault_of(modules[path])
        if kind != layer.kind or wanted != given:
            fault = f"an update of a {layer.kind}, {given}; the model's is a {kind}, {wanted}"
        if fault:
            faults.append(f"{module_name}: {fault}")
        targets.append(Target(path, modules[path], wrapper, kind, layer.rank))
        layers[path] = layer
    if faults:
        msg = "the adapter does not fit the model"
        raise MismatchError.of(msg, faults)
    put_in(model, targets, layers, name=name, dropout=dropout, trainable=trainable)
    return report(model, name)


def _task_type(model: nn.Module) -> str | None:
    """PEFT's task type, from the class that transformers chose."""
    kind = type(model).__name__
    ends = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS"}
    ends |= {"ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS"}
    ends |= {"ForConditionalGeneration": "SEQ_2_SEQ_LM"}
    return next((task for end, task in ends.items() if kind.endswith(end)), None)
