"""What fine-tuning a model takes, method by method, whether that fits, and what to train with."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, get_args

from eckart.engine.machine import available_bytes
from eckart.errors import MismatchError, OptionError
from eckart.nn.config import LoRAConfig
from eckart.planning.advise import Advice, Asked, advise, leanest, ranks_of, with_measured
from eckart.planning.forecast import Forecast, Forecaster
from eckart.planning.guide import DataSize
from eckart.planning.measure import measure
from eckart.planning.measured_ranks import measured_ranks
from eckart.planning.memory import ROOM_BYTES, Memory
from eckart.planning.setting import Attention, BaseDtype, Method, Optimizer, PlanSetting
from eckart.planning.simulation import Part
from eckart.planning.simulator import simulate
from eckart.planning.subject import subject_of
from eckart.training.data import DEFAULT_LENGTH

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from eckart.planning.counts import Outline

FORMAT = "eckart-plan/1"
TARGETS = ("attention-min", "attention", "mlp", "all-linear")


class Options(TypedDict, total=False):
    """How to train, beside the method.

    Attributes:
        rank: of the adapter; alpha is twice that. Without it or a target, the guide chooses.
        target: modules to adapt, as `LoRAConfig` takes them.
        batch_size: sequences a step, 1.
        max_length: tokens of a sequence, 1024 or what the model sees.
        dtype: of the base and the activations, bfloat16.
        optimizer: `adamw`, or `adamw8bit`.
        gradient_checkpointing: compute activations again rather than keep them.
        attention: `sdpa` where the model's code has it, or `eager`.
    """

    rank: int | None
    target: Sequence[str] | None
    batch_size: int
    max_length: int | None
    dtype: BaseDtype
    optimizer: Optimizer
    gradient_checkpointing: bool
    attention: Attention | None


@dataclass(frozen=True)
class Checked:
    """A prediction for this machine's CPU beside what a real step took there.

    Attributes:
        method: that trained.
        predicted_bytes: by simulation.
        measured_bytes: that the process took for model and step.
        seconds: of the step.
    """

    method: Method
    predicted_bytes: int
    measured_bytes: int
    seconds: float

    @property
    def error(self) -> float:
        """By which share the prediction misses what was measured."""
        return self.predicted_bytes / self.measured_bytes - 1

    def to_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {**vars(self), "error": self.error}


@dataclass(frozen=True)
class Plan:
    """What a fine-tune takes.

    Attributes:
        model: its name.
        source: what `eckart train` takes for it, if anything.
        forecasts: of the method that was named, or of all of them.
        chosen: the forecast that the numbers below are of: of the method that was named, else of what is advised.
        memory: that it should fit.
        advice: what to train with; None where nothing fits.
        counts: parameters of an adapter of rank 1, by target.
        model_params: numbers in the model without adapters.
        notes: what a reader should know of the numbers.
    """

    model: str
    source: str | None
    forecasts: tuple[Forecast, ...]
    chosen: Forecast
    memory: Memory | None
    advice: Advice | None
    counts: Mapping[str, int]
    model_params: int
    notes: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """The most that tensors take at once in a step."""
        return self.chosen.peak_bytes

    @property
    def parts(self) -> Mapping[Part, int]:
        """Of the peak."""
        return self.chosen.parts

    @property
    def trainable_params(self) -> int:
        """Numbers that train."""
        return self.chosen.trainable_params

    @property
    def total_params(self) -> int:
        """Of the model, adapters included."""
        return self.chosen.total_params

    @property
    def source_of_numbers(self) -> str:
        """`simulation` or `estimate`."""
        return self.chosen.source

    @property
    def fits(self) -> bool | None:
        """Whether the peak fits the memory; None where none was named."""
        return None if self.memory is None else self.fitting(self.chosen)

    def fitting(self, forecast: Forecast) -> bool:
        """Whether a forecast fits the memory, with what is kept free."""
        return self.memory is None or forecast.peak_bytes <= self.memory.usable_bytes

    def to_json(self) -> dict[str, Any]:
        """What scripts rely on."""
        return {
            "format": FORMAT,
            "model": self.model,
            "peak_bytes": self.peak_bytes,
            "parts": dict(self.parts),
            "trainable_params": self.trainable_params,
            "total_params": self.total_params,
            "fits": self.fits,
            "source": self.source_of_numbers,
            "method": self.chosen.setting.method,
            "memory_bytes": self.memory and self.memory.nbytes,
            "usable_bytes": self.memory and self.memory.usable_bytes,
            "advice": self.advice and self.advice.to_json(),
            "methods": [forecast.to_json() for forecast in self.forecasts],
            "params_per_rank": dict(self.counts),
            "notes": list(self.notes),
        }


def plan(
    model: "str | Path | Mapping[str, Any] | PretrainedConfig",
    *,
    method: Method | None = None,
    memory: str | None = None,
    data_size: str | None = None,
    analysis: str | Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
    **options: Unpack[Options],
) -> Plan:
    """Plan a fine-tune: its peak memory by part, whether it fits, and what to train with.

    The model's own code runs a training step on tensors without data; where that cannot be done, or only a number of
    parameters is known, a closed form stands in and the result says so. No weights are read and no GPU is asked.

    Args:
        model: a preset such as `llama-3-8b`, a SOURCE (only its config is read), a number of parameters such as `8B`,
            or a config.
        method: `full`, `lora`, `dora` or `qlora`; without, all are compared.
        memory: to fit, such as `24GB`; 0.5 GB of it are kept free.
        data_size: to learn from: `5000` examples, `3M tokens`.
        analysis: an analysis.json of an earlier fine-tune, whose spectra give each module its rank.
        tell: called with a few words before anything that takes seconds.
        **options: see `Options`.

    Raises:
        SourceError: there is no such model.
        OptionError: a setting, memory or data size that cannot be.
        MismatchError: the adapter, or the analysis, does not fit the model.
        MissingExtraError: transformers is not installed.
        TypeError: an option that there is not.
    """
    if unknown := sorted(options.keys() - Options.__annotations__.keys()):
        msg = f"plan() got {', '.join(unknown)}; its options are {', '.join(Options.__annotations__)}"
        raise TypeError(msg)
    if method is not None and method not in get_args(Method):
        msg = f"method must be one of {', '.join(get_args(Method))}, got {method!r}"
        raise OptionError(msg)
    room = None if memory is None else Memory.parse(memory)
    data = None if data_size is None else DataSize.parse(data_size)
    forecaster = Forecaster(subject_of(model), tell)
    outline, base = forecaster.outline, _setting(forecaster.outline, options)
    asked = Asked(base, method, room, data)
    forecasts = tuple(forecaster.quick(asked.of(each)) for each in _methods(method, asked))
    advice = advise(forecaster, asked)
    if advice is not None and analysis is not None:
        advice = _measured(forecaster, advice, analysis)
    if method is not None:
        chosen = forecaster.confirm(asked.of(method))
        forecasts = (chosen,)
    else:
        chosen = advice.forecast if advice else forecaster.quick(leanest(asked))
        forecasts = tuple(forecaster.quick(forecast.setting) for forecast in forecasts)
    return Plan(
        model=forecaster.subject.name,
        source=forecaster.subject.source,
        forecasts=forecasts,
        chosen=chosen,
        memory=room,
        advice=advice,
        counts={} if outline is None else _counts(outline),
        model_params=forecaster.total_params,
        notes=tuple(_notes(forecaster, base)),
    )


def _methods(method: Method | None, asked: Asked) -> tuple[Method, ...]:
    if method is not None:
        return (method,)
    return tuple(each for each in get_args(Method) if each != "lora" or asked.lora.method != "dora")


def _setting(outline: "Outline | None", options: Options) -> PlanSetting:
    """What was asked for, and for the rest what suits the model; without a rank or target the guide chooses those."""
    positions = outline.positions if outline else None
    length = options.get("max_length")
    if length is not None and positions is not None and length > positions:
        warnings.warn(f"max_length {length:,}: the model sees {positions:,} tokens at once", stacklevel=3)
    attention, leanest = options.get("attention"), outline.attention if outline else "sdpa"
    if attention == "sdpa" and leanest == "eager":
        msg = "attention sdpa: this model's code has only eager"
        raise OptionError(msg)
    rank, target = options.get("rank"), options.get("target")
    lora = None
    if rank is not None or target:
        rank = 16 if rank is None else rank
        lora = LoRAConfig(rank=rank, alpha=2.0 * rank, dropout=0.05, target=target or LoRAConfig().target)
    return PlanSetting(
        lora=lora,
        dtype=options.get("dtype", "bfloat16"),
        optimizer=options.get("optimizer", "adamw"),
        batch_size=options.get("batch_size", 1),
        length=min(DEFAULT_LENGTH, positions or DEFAULT_LENGTH) if length is None else length,
        gradient_checkpointing=options.get("gradient_checkpointing", False),
        attention=attention or leanest,
    )


def _counts(outline: "Outline") -> dict[str, int]:
    counts = {}
    for target in TARGETS:
        try:
            counts[target] = outline.adapter(LoRAConfig(rank=1, target=target)).trainable_params
        except MismatchError:  # a model without such layers
            continue
    return counts


def _measured(forecaster: Forecaster, advice: Advice, analysis: str | Path) -> Advice:
    """The advice with measured ranks, and forecast with them."""
    lora = advice.setting.lora
    if lora is None or forecaster.outline is None:
        msg = "--analysis gives ranks to an adapter of a model whose config is known, not to this plan"
        raise OptionError(msg)
    found = measured_ranks(analysis, forecaster.outline.adapter(lora), rank=lora.rank)
    forecast = forecaster.whole(replace(advice.setting, lora=ranks_of(lora, found.ranks)))
    return with_measured(replace(advice, forecast=replace(forecast, setting=advice.setting)), found)


def _notes(forecaster: Forecaster, setting: PlanSetting) -> list[str]:
    """What a reader should know of the numbers."""
    notes = list(forecaster.doubts)
    outline = forecaster.outline
    if outline is None:
        notes.append("From a number of parameters alone: a closed form for a model of usual proportions, and rough.")
        return notes
    if outline.linear_params < outline.total_params / 2:
        share = outline.linear_params / outline.total_params
        notes.append(
            f"Linear layers hold {share:.0%} of the weights: qlora leaves the rest, such as fused experts, dense."
        )
    if outline.attention == "eager" and setting.attention == "eager":
        notes.append("The model's code has only eager attention, which keeps scores of all pairs of tokens.")
    return notes


def check(model: "str | Path | Mapping[str, Any] | PretrainedConfig", setting: PlanSetting) -> Checked:
    """Train a model of random weights for a real step on this machine's CPU, and hold a simulation against it.

    Args:
        model: as `plan` takes it; a bare number of parameters cannot be trained.
        setting: to check.

    Raises:
        OptionError: there is no config, or this machine's memory is too small.
        EckartError: the step failed.
    """
    subject = subject_of(model)
    if subject.config is None:
        msg = f"{subject.name} cannot be measured: name a model whose config is known"
        raise OptionError(msg)
    predicted = simulate(subject.config, setting, device="cpu").peak_bytes
    free = available_bytes()
    if predicted + ROOM_BYTES > free:
        msg = f"--measure would take {predicted / 1e9:.1f} GB of memory here, and {free / 1e9:.1f} GB are free"
        raise OptionError(msg)
    found = measure(subject.config, setting)
    return Checked(setting.method, predicted, found.peak_bytes, found.seconds)
