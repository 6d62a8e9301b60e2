"""What to train with: rules of thumb, then what fits into memory, then what the next step up would cost."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from eckart.errors import MismatchError
from eckart.nn.config import LoRAConfig
from eckart.planning.forecast import Forecast, Forecaster
from eckart.planning.guide import EFFECTIVE_BATCH, DataSize, rule_for
from eckart.planning.measured_ranks import MeasuredRanks
from eckart.planning.memory import Memory
from eckart.planning.setting import Method, PlanSetting

Source = Literal["rule", "simulation", "estimate", "spectrum", "given"]

MAX_BATCH, LENGTH_STEP, MAX_LENGTH, MIN_LENGTH = 64, 128, 32_768, 128
SMALL_RANK = 8
MARGIN = 0.05  # share of the usable memory that must stay free where checkpointing or a smaller batch can free it
_TRIES = 15


@dataclass(frozen=True)
class Reason:
    """One piece of advice, why it is given and what that is based on."""

    what: str
    value: str
    why: str
    source: Source


@dataclass(frozen=True)
class Step:
    """A better setting than the advised one, and its price.

    Attributes:
        what: in words.
        peak_bytes: peak memory.
        more_bytes: peak memory beyond that of the advised setting.
    """

    what: str
    peak_bytes: int
    more_bytes: int


@dataclass(frozen=True)
class Advice:
    """What to train with.

    Attributes:
        forecast: memory of the advised setting.
        reasons: the choices it consists of.
        next_steps: what more memory would buy.
        largest_batch: largest that fits at the advised length; None where no memory was given.
        largest_length: longest single sequence that fits.
        measured: ranks for each module, where spectra were given.
    """

    forecast: Forecast
    reasons: tuple[Reason, ...]
    next_steps: tuple[Step, ...] = ()
    largest_batch: int | None = None
    largest_length: int | None = None
    measured: MeasuredRanks | None = None

    @property
    def setting(self) -> PlanSetting:
        """The advised setting."""
        return self.forecast.setting

    def command(self, source: str) -> str:
        """The matching `eckart train`; empty where it has no such options: full fine-tuning, ranks by module."""
        setting, lora, default = self.setting, self.setting.adapter, LoRAConfig()
        if lora is None or setting.dtype == "float16" or self.measured is not None:
            return ""
        options = {
            "--method dora": lora.method == "dora",
            "--quantize nf4": setting.method == "qlora",
            f"--rank {lora.rank}": True,
            f"--alpha {lora.alpha:g}": True,
            f"--dropout {lora.dropout:g}": True,
            **{f"--target {target}": lora.target != default.target for target in lora.target},
            f"--batch-size {setting.batch_size}": True,
            f"--accumulate {EFFECTIVE_BATCH // setting.batch_size}": setting.batch_size * 2 <= EFFECTIVE_BATCH,
            f"--max-length {setting.length}": True,
            "--gradient-checkpointing": setting.gradient_checkpointing,
            "--dtype float32": setting.dtype == "float32",
        }
        needed = (option for option, is_needed in options.items() if is_needed)
        return " ".join([f"eckart train {source} DATA -o adapter", *needed])

    def to_json(self) -> dict[str, Any]:
        """The `advice` of `eckart-plan/1`."""
        lora = self.setting.adapter
        return {
            **self.forecast.to_json(),
            "dtype": self.setting.dtype,
            "optimizer": self.setting.optimizer,
            "rank": lora and lora.rank,
            "alpha": lora and lora.alpha,
            "dropout": lora and lora.dropout,
            "target": lora and list(lora.target),
            "largest_batch_size": self.largest_batch,
            "largest_length": self.largest_length,
            "ranks": self.measured and dict(self.measured.ranks),
            "reasons": [vars(reason) for reason in self.reasons],
            "next_steps": [vars(step) for step in self.next_steps],
        }


@dataclass(frozen=True)
class Request:
    """What the user asked for, and for everything else what the rules say.

    Attributes:
        setting: the whole setting, with an adapter whatever its method is.
        named: names of the options that the user gave; the others may be changed by advice.
        memory: memory to fit into.
        data: size of the training data.
    """

    setting: PlanSetting
    named: frozenset[str]
    memory: Memory | None = None
    data: DataSize | None = None

    @property
    def adapter(self) -> LoRAConfig:
        """The adapter of the setting."""
        assert self.setting.lora is not None
        return self.setting.lora

    def using(self, method: Method) -> PlanSetting:
        """The setting with another method."""
        return replace(self.setting, method=method, lora=None if method == "full" else self.setting.lora)


def advise(forecaster: Forecaster, request: Request) -> Advice | None:
    """The first setting that fits, from the most faithful to the leanest; None if none does.

    The order: LoRA, LoRA with checkpointing, QLoRA, QLoRA with checkpointing, then a smaller rank, then adapters on
    attention alone, then shorter sequences. Options that the user gave stay, except for the length.
    """
    if request.memory is None:
        forecast = forecaster.confirm(request.using(request.setting.method))
        reasons = tuple(_reasons(request, forecast, [], None))
        return Advice(forecast, reasons, tuple(_next_steps(forecaster, forecast)))
    passed: list[Forecast] = []
    for forecast in _fitting(forecaster, request, passed):
        advice = _filled(forecaster, request, forecast, passed)
        if advice.forecast.peak_bytes <= request.memory.usable_bytes:
            return advice
        passed.append(forecast)
    return None


def leanest(request: Request) -> PlanSetting:
    """The setting with the lowest peak of those that `advise` tries at the requested length."""
    return [setting for setting in _candidates(request) if setting.length == request.setting.length][-1]


def _fitting(forecaster: Forecaster, request: Request, passed: list[Forecast]) -> Iterator[Forecast]:
    """Forecasts of the candidates that fit; those that do not are added to `passed`."""
    assert request.memory is not None
    limit, tight = request.memory.usable_bytes, None
    for setting in _candidates(request):
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


def _candidates(request: Request) -> Iterator[PlanSetting]:
    """Settings from the most faithful to the leanest."""
    methods: tuple[Method, ...] = (request.setting.method,) if "method" in request.named else ("lora", "qlora")
    setting = request.using(methods[0])
    for method in methods:
        for checkpointing in sorted({request.setting.gradient_checkpointing, True}):
            setting = replace(request.using(method), gradient_checkpointing=checkpointing)
            yield setting
    if setting.method == "full":
        setting = replace(setting, optimizer="adamw8bit")
        yield setting
    else:
        for lora in _smaller_adapters(request):
            setting = replace(setting, lora=lora)
            yield setting
    while setting.length // 2 >= MIN_LENGTH:
        setting = replace(setting, length=setting.length // 2)
        yield setting


def _smaller_adapters(request: Request) -> Iterator[LoRAConfig]:
    """Adapters of lower rank or on fewer modules, as far as the user left these open."""
    lora = request.adapter
    targets = [lora.target] if "target" in request.named else [lora.target, "attention", "attention-min"]
    ranks = [lora.rank] if "rank" in request.named or lora.rank <= SMALL_RANK else [lora.rank, SMALL_RANK]
    for target in targets:
        for rank in ranks:
            smaller = replace(lora, target=target, rank=rank, alpha=2.0 * rank)
            if smaller != lora:
                yield smaller


def _filled(forecaster: Forecaster, request: Request, forecast: Forecast, passed: list[Forecast]) -> Advice:
    """Advice for a setting that fits: with the batch that the memory has room for, and confirmed on all layers."""
    assert request.memory is not None
    setting, limit = forecast.setting, request.memory.usable_bytes
    largest_batch = _largest_batch(forecaster, setting, limit)
    length = _largest_length(forecaster, replace(setting, batch_size=1), limit)
    batch = setting.batch_size
    if "batch_size" not in request.named:
        batch = min(_largest_batch(forecaster, setting, int((1 - MARGIN) * limit)), EFFECTIVE_BATCH)
    forecast = forecaster.confirm(replace(setting, batch_size=batch))
    while forecast.peak_bytes > limit and forecast.setting.batch_size > 1:
        largest_batch = forecast.setting.batch_size - 1
        forecast = forecaster.full(replace(setting, batch_size=largest_batch))
    reasons = _reasons(request, forecast, passed, (largest_batch, length))
    return Advice(forecast, tuple(reasons), tuple(_next_steps(forecaster, forecast)), largest_batch, length)


def _largest_batch(forecaster: Forecaster, setting: PlanSetting, limit: int) -> int:
    """Largest number of sequences per step that fits."""

    def peak(batch: int) -> int:
        return forecaster.quick(replace(setting, batch_size=batch)).peak_bytes

    fits = setting.batch_size
    return largest(peak, limit, fits=fits, most=max(MAX_BATCH, fits), guess=2 * fits)


def _largest_length(forecaster: Forecaster, setting: PlanSetting, limit: int) -> int:
    """Longest single sequence that fits, in steps of 128 tokens, up to the model's context length."""
    positions = (forecaster.outline.positions if forecaster.outline else None) or MAX_LENGTH
    most = min(positions, MAX_LENGTH) // LENGTH_STEP
    fits = setting.length // LENGTH_STEP
    if most <= fits or not fits:
        return setting.length

    def peak(steps: int) -> int:
        return forecaster.quick(replace(setting, length=steps * LENGTH_STEP)).peak_bytes

    # Two sequences need as much as one of twice the length, unless attention stores its full matrix.
    one, two = peak(fits), forecaster.quick(replace(setting, batch_size=2)).peak_bytes
    guess = int((limit - one) / max(two - one, 1) * fits) + fits
    return LENGTH_STEP * largest(peak, limit, fits=fits, most=most, guess=guess)


def largest(peak: Callable[[int], int], limit: int, *, fits: int, most: int, guess: int) -> int:
    """The largest integer up to `most` whose peak is within the limit, found in few tries.

    Bisection, but two of three tries are where a straight line through the last results meets the limit: peaks grow
    almost linearly with the batch. The result was tried and fits; after fifteen tries it may not be the very largest.

    Args:
        peak: bytes for a number; must not decrease.
        limit: bytes available.
        fits: a number that fits.
        most: largest number of interest.
        guess: what to try first.
    """
    peaks = {fits: peak(fits)}
    fails = most + 1
    for tries in range(_TRIES):
        if fails - fits <= 1:
            break
        if tries % 3 == 2:  # a curve stays away from every line
            guess = (fits + fails) // 2
        guess = min(max(guess, fits + 1), fails - 1)
        peaks[guess] = peak(guess)
        if peaks[guess] <= limit:
            fits = guess
        else:
            fails = guess
        low, high = sorted(peaks)[-2:] if fails not in peaks else (fits, fails)
        slope = (peaks[high] - peaks[low]) / (high - low)
        guess = most if slope <= 0 else fits + int((limit - peaks[fits]) / slope)
    return fits


def _next_steps(forecaster: Forecaster, forecast: Forecast) -> Iterator[Step]:
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
    for what, other in better.items():
        try:
            peak = forecaster.quick(other).peak_bytes
        except MismatchError:
            continue  # twice the rank is more than some weight has
        yield Step(what, peak, peak - forecast.peak_bytes)


def _reasons(
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
        yield Reason("rank", str(lora.rank), rule_for(request.data).why, "rule")
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


def with_measured(advice: Advice, measured: MeasuredRanks) -> Advice:
    """The advice with ranks for each module from spectra."""
    ranks = [rank for rank in measured.ranks.values() if rank]
    why = f"keeps {measured.kept:.1%} of the earlier update, the same rank everywhere {measured.kept_evenly:.1%}"
    span = f"{min(ranks)}–{max(ranks)}" if ranks else "0"
    reason = Reason("rank by module", span, why, "spectrum")
    return replace(advice, reasons=(*advice.reasons, reason), measured=measured)


def ranks_of(lora: LoRAConfig, ranks: Mapping[str, int]) -> LoRAConfig:
    """An adapter with these ranks; modules with rank 0 are left out."""
    positive = {name: rank for name, rank in ranks.items() if rank}
    return replace(lora, target=tuple(positive), exclude=(), rank_pattern=positive)
