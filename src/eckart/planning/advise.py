"""Which settings to train with: by rules of thumb, then by what fits, and what the next step up would cost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from eckart.errors import MismatchError
from eckart.nn.config import LoRAConfig
from eckart.planning.forecast import Forecast, Forecaster
from eckart.planning.guide import EFFECTIVE_BATCH, RULES, DataSize, Rule
from eckart.planning.measured_ranks import MeasuredRanks
from eckart.planning.memory import Memory
from eckart.planning.search import largest
from eckart.planning.setting import Method, PlanSetting

Source = Literal["rule", "simulation", "estimate", "spectrum", "given"]

MOST_BATCH, LENGTH_STEP, MOST_LENGTH, LEAST_LENGTH = 64, 128, 32_768, 128


@dataclass(frozen=True)
class Reason:
    """One piece of advice, and where it comes from."""

    what: str
    value: str
    why: str
    source: Source


@dataclass(frozen=True)
class Step:
    """Something better than what is advised, and its price.

    Attributes:
        what: in words.
        peak_bytes: that it takes.
        more_bytes: than what is advised.
    """

    what: str
    peak_bytes: int
    more_bytes: int


@dataclass(frozen=True)
class Advice:
    """What to train with.

    Attributes:
        forecast: of the advised setting.
        reasons: what it consists of, and why.
        next_steps: what more memory would buy.
        largest_batch: that fits at the advised length; None where no memory was named.
        largest_length: that fits one advised sequence a step.
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
        """What is advised."""
        return self.forecast.setting

    def command(self, source: str) -> str:
        """The `eckart train` that does it; empty where that trains otherwise: all weights, or ranks by module."""
        setting, lora, usual = self.setting, self.setting.adapter, LoRAConfig()
        if lora is None or setting.dtype == "float16" or self.measured is not None:
            return ""
        options = {
            "--method dora": lora.method == "dora",
            "--quantize nf4": setting.method == "qlora",
            f"--rank {lora.rank}": True,
            f"--alpha {lora.alpha:g}": True,
            f"--dropout {lora.dropout:g}": True,
            **{f"--target {target}": lora.target != usual.target for target in lora.target},
            f"--batch-size {setting.batch_size}": True,
            f"--accumulate {EFFECTIVE_BATCH // setting.batch_size}": setting.batch_size * 2 <= EFFECTIVE_BATCH,
            f"--max-length {setting.length}": True,
            "--gradient-checkpointing": setting.gradient_checkpointing,
            "--dtype float32": setting.dtype == "float32",
        }
        return " ".join([f"eckart train {source} DATA -o adapter", *(text for text, taken in options.items() if taken)])

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
class Asked:
    """What a user has decided already.

    Attributes:
        setting: all but what is advised; its `lora` is None where the guide may choose.
        method: that was named.
        memory: to fit.
        data: to learn from.
    """

    setting: PlanSetting
    method: Method | None = None
    memory: Memory | None = None
    data: DataSize | None = None

    @property
    def rule(self) -> Rule:
        """The guide's, for the size of the data."""
        return RULES[self.data.size if self.data else "usual"]

    @property
    def lora(self) -> LoRAConfig:
        """The adapter that the user named, else the guide's."""
        rule = self.rule
        return self.setting.lora or LoRAConfig(rank=rule.rank, alpha=2.0 * rule.rank, dropout=rule.dropout)

    def of(self, method: Method) -> PlanSetting:
        """The setting with a method, and the adapter that the guide or the user chose."""
        return replace(self.setting, method=method, lora=None if method == "full" else self.lora)


def advise(forecaster: Forecaster, asked: Asked) -> Advice | None:
    """The first setting that fits, from the most faithful to the leanest; None where even that does not.

    The order: LoRA, LoRA with checkpointing, QLoRA, QLoRA with checkpointing, then adapters on attention alone, then
    shorter sequences. A method that was named is kept.
    """
    if asked.memory is None:
        forecast = forecaster.confirm(asked.of(asked.method or "lora"))
        return Advice(forecast, tuple(_reasons(asked, forecast, [], None)), tuple(_next_steps(forecaster, forecast)))
    limit, passed = asked.memory.usable_bytes, []
    for setting in _ladder(asked):
        try:
            forecast = forecaster.quick(setting)
        except MismatchError:
            if setting.lora == asked.lora:
                raise
            continue  # a model without attention layers that an adapter could take
        if forecast.peak_bytes <= limit:
            break
        passed.append(forecast)
    else:
        return None
    setting = forecast.setting
    batch = _largest_batch(forecaster, setting, limit)
    length = _largest_length(forecaster, replace(setting, batch_size=1), limit)
    wanted = setting.batch_size if setting.batch_size > 1 else min(batch, EFFECTIVE_BATCH)
    forecast = forecaster.confirm(replace(setting, batch_size=wanted))
    while forecast.peak_bytes > limit and forecast.setting.batch_size > 1:
        batch = forecast.setting.batch_size - 1
        forecast = forecaster.whole(replace(setting, batch_size=batch))
    reasons = _reasons(asked, forecast, passed, (batch, length))
    return Advice(forecast, tuple(reasons), tuple(_next_steps(forecaster, forecast)), batch, length)


def leanest(asked: Asked) -> PlanSetting:
    """The setting that takes least of those that `advise` tries, at the length that was asked for."""
    return [setting for setting in _ladder(asked) if setting.length == asked.setting.length][-1]


def _ladder(asked: Asked) -> Iterator[PlanSetting]:
    """Settings from the most faithful to the leanest."""
    methods: tuple[Method, ...] = (asked.method,) if asked.method else ("lora", "qlora")
    setting = asked.of(methods[0])
    for method in methods:
        for checkpointing in sorted({asked.setting.gradient_checkpointing, True}):
            setting = replace(asked.of(method), gradient_checkpointing=checkpointing)
            yield setting
    if setting.method == "full":
        setting = replace(setting, optimizer="adamw8bit")
        yield setting
    elif asked.setting.lora is None:
        for target, most in (("attention", asked.lora.rank), ("attention-min", 8)):
            rank = min(asked.lora.rank, most)
            setting = replace(setting, lora=replace(asked.lora, target=target, rank=rank, alpha=2.0 * rank))
            yield setting
    while setting.length // 2 >= LEAST_LENGTH:
        setting = replace(setting, length=setting.length // 2)
        yield setting


def _largest_batch(forecaster: Forecaster, setting: PlanSetting, limit: int) -> int:
    """Sequences that fit a step."""

    def peak(batch: int) -> int:
        return forecaster.quick(replace(setting, batch_size=batch)).peak_bytes

    given = setting.batch_size
    return largest(peak, limit, fits=given, most=max(MOST_BATCH, given), guess=2 * given)


def _largest_length(forecaster: Forecaster, setting: PlanSetting, limit: int) -> int:
    """Tokens of one sequence that fit, in steps of 128, up to what the model sees."""
    positions = (forecaster.outline.positions if forecaster.outline else None) or MOST_LENGTH
    most = min(positions, MOST_LENGTH) // LENGTH_STEP
    fits = setting.length // LENGTH_STEP
    if most <= fits or not fits:
        return setting.length

    def peak(steps: int) -> int:
        return forecaster.quick(replace(setting, length=steps * LENGTH_STEP)).peak_bytes

    # Two sequences take what one of twice the length does, as long as no scores are kept.
    one, two = peak(fits), forecaster.quick(replace(setting, batch_size=2)).peak_bytes
    guess = int((limit - one) / max(two - one, 1) * fits) + fits
    return LENGTH_STEP * largest(peak, limit, fits=fits, most=most, guess=guess)


def _next_steps(forecaster: Forecaster, forecast: Forecast) -> Iterator[Step]:
    """What more memory would buy: more rank, speed, a base in full, all weights."""
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
    asked: Asked, forecast: Forecast, passed: list[Forecast], room: tuple[int, int] | None
) -> Iterator[Reason]:
    """What the advice consists of, and why."""
    setting, lora, known = forecast.setting, forecast.setting.adapter, forecast.source
    taken = " and ".join(dict.fromkeys(each.setting.method for each in passed if each.setting.method != setting.method))
    if asked.method:
        yield Reason("method", setting.method, "you named it", "given")
    elif asked.memory:
        why = (
            f"{taken} does not fit, with or without checkpointing" if taken else "the base stays as it is, and it fits"
        )
        yield Reason("method", setting.method, why, known)
    else:
        yield Reason("method", setting.method, "an adapter learns most tasks at a fraction of the memory", "rule")
    if lora is not None:
        chosen: Source = "given" if asked.setting.lora else "rule"
        yield Reason("rank", str(lora.rank), "you named it" if asked.setting.lora else asked.rule.why, chosen)
        yield Reason("alpha", f"{lora.alpha:g}", "twice the rank" if lora.alpha == 2 * lora.rank else "given", chosen)
        leaner = tuple(lora.target) != tuple(asked.lora.target)
        why = "no more fits" if leaner else "you named it" if asked.setting.lora else "all linear layers learn most"
        yield Reason("target", ", ".join(lora.target), why, known if leaner else chosen)
        yield Reason("dropout", f"{lora.dropout:g}", "0 for large data, 0.1 for small, else 0.05", chosen)
    if room is None:
        return
    on, shorter = setting.gradient_checkpointing, setting.length < asked.setting.length
    why = (
        "it fits without"
        if not on
        else "you named it"
        if asked.setting.gradient_checkpointing
        else "else it does not fit"
    )
    yield Reason("checkpointing", "on" if on else "off", why, known)
    yield Reason("batch", str(setting.batch_size), f"at most {room[0]} of {setting.length:,} tokens fit", known)
    why = f"{asked.setting.length:,} do not fit" if shorter else f"a single one of up to {room[1]:,} fits"
    yield Reason("length", f"{setting.length:,}", why, known)


def with_measured(advice: Advice, measured: MeasuredRanks) -> Advice:
    """The advice with ranks for each module from spectra."""
    taken = [rank for rank in measured.ranks.values() if rank]
    why = f"keeps {measured.kept:.1%} of the earlier update, one rank for all {measured.kept_evenly:.1%}"
    span = f"{min(taken)}–{max(taken)}" if taken else "0"
    reason = Reason("rank by module", span, why, "spectrum")
    return replace(advice, reasons=(*advice.reasons, reason), measured=measured)


def ranks_of(lora: LoRAConfig, ranks: Mapping[str, int]) -> LoRAConfig:
    """An adapter with these ranks; modules with none are left out."""
    taken = {name: rank for name, rank in ranks.items() if rank}
    return replace(lora, target=tuple(taken), exclude=(), rank_pattern=taken)
