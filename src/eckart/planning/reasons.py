"""Why a setting is advised: the choices that it consists of."""

from collections.abc import Iterator

from eckart.planning.advice import Reason
from eckart.planning.forecast import Forecast
from eckart.planning.guide import rule_for
from eckart.planning.request import Request


def reasons(
    request: Request, forecast: Forecast, passed: list[Forecast], largest_sizes: tuple[int, int] | None
) -> Iterator[Reason]:
    """The choices that the advice consists of, and why.

    Args:
        request: what was asked for.
        forecast: of the advised setting.
        passed: forecasts of better settings that do not fit, or hardly.
        largest_sizes: the largest batch and the longest sequence that fit; None where no memory was given.
    """
    yield _method_reason(request, forecast, passed)
    yield from _adapter_reasons(request, forecast)
    if largest_sizes is None:
        return
    setting, source = forecast.setting, forecast.source
    batch, length = largest_sizes
    yield _checkpointing_reason(request, forecast, passed)
    yield Reason("batch", str(setting.batch_size), f"at most {batch} of {setting.length:,} tokens fit", source)
    requested = request.setting.length
    why = f"{requested:,} tokens do not fit" if setting.length < requested else f"one of up to {length:,} tokens fits"
    yield Reason("length", f"{setting.length:,}", why, source)


def _method_reason(request: Request, forecast: Forecast, passed: list[Forecast]) -> Reason:
    method = forecast.setting.method
    if "method" in request.named:
        return Reason("method", method, "as requested", "given")
    if request.memory is None:
        return Reason("method", method, "an adapter learns most tasks at a fraction of the memory", "rule")
    larger = " and ".join(dict.fromkeys(each.setting.method for each in passed if each.setting.method != method))
    why = f"{larger} does not fit, even with checkpointing" if larger else "the base stays unquantized, and it fits"
    return Reason("method", method, why, forecast.source)


def _adapter_reasons(request: Request, forecast: Forecast) -> Iterator[Reason]:
    lora, wanted = forecast.setting.adapter, request.adapter
    if lora is None:
        return
    if "rank" in request.named:
        yield Reason("rank", str(lora.rank), "as requested", "given")
    elif lora.rank < wanted.rank:
        yield Reason("rank", str(lora.rank), f"{wanted.rank} does not fit", forecast.source)
    else:
        *_, why = rule_for(request.examples)
        yield Reason("rank", str(lora.rank), why, "rule")
    yield Reason("alpha", f"{lora.alpha:g}", "twice the rank", "rule")
    target = ", ".join(lora.target)
    if "target" in request.named:
        yield Reason("target", target, "as requested", "given")
    elif lora.target != wanted.target:
        yield Reason("target", target, "more modules do not fit", forecast.source)
    else:
        yield Reason("target", target, "all linear layers learn most", "rule")
    yield Reason("dropout", f"{lora.dropout:g}", "0 for large data, 0.1 for small, else 0.05", "rule")


def _checkpointing_reason(request: Request, forecast: Forecast, passed: list[Forecast]) -> Reason:
    setting, source = forecast.setting, forecast.source
    if request.setting.gradient_checkpointing:
        return Reason("checkpointing", "on", "as requested", "given")
    if not setting.gradient_checkpointing:
        return Reason("checkpointing", "off", "it fits without", source)
    assert request.memory is not None
    usable = request.memory.usable_bytes
    free = [usable - each.peak_bytes for each in passed if each.setting.method == setting.method]
    if free and max(free) >= 0:
        why = f"without it, only {max(free) / 1e9:.2g} GB of {usable / 1e9:.3g} GB stay free"
        return Reason("checkpointing", "on", why, source)
    return Reason("checkpointing", "on", "it does not fit without", source)
