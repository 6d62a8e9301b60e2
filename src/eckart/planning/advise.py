"""What to train with: rules of thumb, then what fits into memory, then what the next step up would cost."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from eckart.errors import MismatchError, OptionError
from eckart.planning.advice import Advice, Reason
from eckart.planning.candidates import candidates
from eckart.planning.forecast import Forecast
from eckart.planning.forecaster import Forecaster
from eckart.planning.guide import EFFECTIVE_BATCH
from eckart.planning.largest import largest_batch, largest_length
from eckart.planning.measured_ranks import measured_ranks
from eckart.planning.reasons import reasons
from eckart.planning.request import Request
from eckart.planning.setting import PlanSetting

MARGIN = 0.05  # share of the usable memory that must stay free where checkpointing or a smaller batch can free it


def advise(forecaster: Forecaster, request: Request) -> Advice | None:
    """The first setting that fits, from the most faithful to the leanest; None if none does.

    The order: LoRA, LoRA with checkpointing, QLoRA, QLoRA with checkpointing, then a smaller rank, then adapters on
    attention alone, then shorter sequences. Options that the user gave stay, except for the length.
    """
    if request.memory is None:
        forecast = forecaster.confirm(request.using(request.setting.method))
        choices = tuple(reasons(request, forecast, [], None))
        return Advice(forecast, choices, _next_steps(forecaster, forecast))
    passed: list[Forecast] = []
    for forecast in _fitting(forecaster, request, passed):
        advice = _filled(forecaster, request, forecast, passed)
        if advice.forecast.peak_bytes <= request.memory.usable_bytes:
            return advice
        passed.append(forecast)
    return None


def _fitting(forecaster: Forecaster, request: Request, passed: list[Forecast]) -> Iterator[Forecast]:
    """Forecasts of the candidates that fit; those that do not are added to `passed`."""
    assert request.memory is not None
    limit, tight = request.memory.usable_bytes, None
    for setting in candidates(request):
        try:
            forecast = forecaster.quick(setting)
        except MismatchError:
            if setting.lora == request.setting.lora:
                raise
            continue  # a model without attention layers that an adapter could be put on
        if forecast.peak_bytes > limit:
            passed.append(forecast)
            if tight is not None:
                yield tight  # checkpointing does not help
        elif setting.gradient_checkpointing or forecast.peak_bytes <= (1 - MARGIN) * limit:
            yield forecast
        else:
            passed.append(forecast)
            tight = forecast
            continue
        tight = None


def _filled(forecaster: Forecaster, request: Request, forecast: Forecast, passed: list[Forecast]) -> Advice:
    """Advice for a setting that fits: with the batch that the memory has room for, and confirmed on all layers."""
    assert request.memory is not None
    setting, limit = forecast.setting, request.memory.usable_bytes
    batch_limit = largest_batch(forecaster, setting, limit)
    length_limit = largest_length(forecaster, replace(setting, batch_size=1), limit)
    batch = setting.batch_size
    if "batch_size" not in request.named:
        batch = min(largest_batch(forecaster, setting, int((1 - MARGIN) * limit)), EFFECTIVE_BATCH)
    forecast = forecaster.confirm(replace(setting, batch_size=batch))
    while forecast.peak_bytes > limit and forecast.setting.batch_size > 1:
        batch_limit = forecast.setting.batch_size - 1
        forecast = forecaster.full(replace(setting, batch_size=batch_limit))
    choices = tuple(reasons(request, forecast, passed, (batch_limit, length_limit)))
    return Advice(forecast, choices, _next_steps(forecaster, forecast), batch_limit, length_limit)


def with_measured_ranks(forecaster: Forecaster, advice: Advice, analysis: str | Path) -> Advice:
    """The advice with a rank for each module from the spectra of an earlier fine-tune, and the forecast for these.

    Raises:
        OptionError: the plan has no adapter, or only a number of parameters is known.
        MismatchError: the analysis is of another model, or of weights.
    """
    lora = advice.setting.lora
    if lora is None or forecaster.outline is None:
        msg = "`analysis` gives ranks to the adapter of a model whose config is known; this plan has none"
        raise OptionError(msg)
    measured, kept, kept_evenly = measured_ranks(analysis, forecaster.outline.adapter(lora), rank=lora.rank)
    ranks = {name: rank for name, rank in measured.ranks.items() if rank}
    by_module = replace(lora, target=tuple(ranks), exclude=(), rank_pattern=ranks)
    forecast = forecaster.full(replace(advice.setting, lora=by_module))
    why = f"keeps {kept:.1%} of the earlier update, the same rank everywhere {kept_evenly:.1%}"
    span = f"{min(ranks.values())}–{max(ranks.values())}" if ranks else "0"
    return replace(
        advice,
        forecast=replace(forecast, setting=advice.setting),
        reasons=(*advice.reasons, Reason("rank by module", span, why, "spectrum")),
        measured=measured,
        analysis=Path(analysis),
    )


def _next_steps(forecaster: Forecaster, forecast: Forecast) -> dict[str, Forecast]:
    """What more memory would buy: more rank, a larger batch, speed, an unquantized base, full fine-tuning."""
    setting, lora = forecast.setting, forecast.setting.lora
    better: dict[str, PlanSetting] = {}
    if lora is not None:
        better[f"rank {2 * lora.rank}"] = replace(setting, lora=replace(lora, rank=2 * lora.rank, alpha=2 * lora.alpha))
    better[f"batch {setting.batch_size + 1}"] = replace(setting, batch_size=setting.batch_size + 1)
    if setting.gradient_checkpointing:
        better["no checkpointing"] = replace(setting, gradient_checkpointing=False)
    if setting.method == "qlora":
        better[f"lora: the base in {setting.dtype}"] = replace(setting, method="lora")
    if setting.method in ("lora", "dora"):
        better["full fine-tuning"] = replace(setting, method="full", lora=None)
    steps = {}
    for what, other in better.items():
        with suppress(MismatchError):  # twice the rank is more than some weight has
            steps[what] = forecaster.quick(other)
    return steps
