"""Plan a fine-tune: its memory by method, whether it fits, and what to train with."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, get_args

from eckart.engine import Progress
from eckart.engine.machine import available_bytes
from eckart.errors import MismatchError, OptionError
from eckart.nn.config import LoRAConfig
from eckart.planning.advise import Advice, Request, advise, leanest, ranks_of, with_measured
from eckart.planning.architecture import Outline
from eckart.planning.forecast import Forecast, Forecaster
from eckart.planning.guide import DataSize, rule_for
from eckart.planning.measure import measure
from eckart.planning.measured_ranks import measured_ranks
from eckart.planning.memory import RESERVED_BYTES, Memory, Part
from eckart.planning.setting import Attention, BaseDtype, Method, Optimizer, PlanSetting
from eckart.planning.simulation import simulate
from eckart.planning.subject import subject_of
from eckart.result import Result
from eckart.training.data import DEFAULT_LENGTH

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FORMAT = "eckart-plan/1"
TARGETS = ("attention-min", "attention", "mlp", "all-linear")


class Options(TypedDict, total=False):
    """How to train, apart from the method.

    Attributes:
        rank: rank of the adapter; alpha is twice that. Default: by the size of the data.
        target: modules to adapt, as `LoRAConfig` takes them. Default: all linear layers.
        batch_size: sequences per step. Default: 1.
        max_length: tokens per sequence. Default: 1024, or the model's context length if that is shorter.
        dtype: data type of the base and the activations. Default: bfloat16.
        optimizer: `adamw` or `adamw8bit`.
        gradient_checkpointing: recompute activations rather than save them.
        attention: `sdpa` if the model's code supports it, or `eager`.
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
class PredictionCheck:
    """A prediction for this machine's CPU compared with a real step.

    Attributes:
        method: the training method.
        predicted_bytes: peak memory by simulation.
        measured_bytes: peak memory of model and step in a real process.
        seconds: time of the step.
    """

    method: Method
    predicted_bytes: int
    measured_bytes: int
    seconds: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_bytes / self.measured_bytes - 1

    def to_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {**vars(self), "error": self.error}


@dataclass(frozen=True, repr=False)
class PlanResult(Result):
    """Memory and advice for a fine-tune.

    Attributes:
        model: name of the model.
        source: what `eckart train` takes for it, if anything.
        forecasts: forecast of the requested method, or of all methods.
        chosen: the forecast that the properties refer to: of the requested setting if a method was given, else of the
            advised one.
        memory: the memory to fit into.
        advice: what to train with; None if nothing fits.
        fits: whether the requested setting fits; None without `memory`. With a method, that setting is `chosen`;
            without one, some setting with all requested options must fit.
        counts: parameters of an adapter of rank 1, by target.
        model_params: parameters of the model without adapters.
        notes: what a reader should know about the numbers.
    """

    model: str
    source: str | None
    forecasts: tuple[Forecast, ...]
    chosen: Forecast
    memory: Memory | None
    advice: Advice | None
    fits: bool | None
    counts: Mapping[str, int]
    model_params: int
    notes: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Most bytes of tensors alive at once in a step."""
        return self.chosen.peak_bytes

    @property
    def parts(self) -> Mapping[Part, int]:
        """The peak by part."""
        return self.chosen.parts

    @property
    def trainable_params(self) -> int:
        """Number of trained parameters."""
        return self.chosen.trainable_params

    @property
    def total_params(self) -> int:
        """Parameters of the model, adapters included."""
        return self.chosen.total_params

    @property
    def source_of_numbers(self) -> str:
        """`simulation` or `estimate`."""
        return self.chosen.source

    def has_room_for(self, forecast: Forecast) -> bool:
        """Whether a forecast fits into the memory, apart from what is reserved; True without `memory`."""
        return self.memory is None or forecast.peak_bytes <= self.memory.usable_bytes

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One row per method."""
        columns = ("method", "batch_size", "max_length", "gradient_checkpointing", "peak_bytes")
        facts = (forecast.to_json() for forecast in self.forecasts)
        return [{**{name: fact[name] for name in columns}, **fact["parts"]} for fact in facts]

    def to_json(self) -> dict[str, Any]:
        """The fields that scripts rely on."""
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
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> PlanResult:
    """Plan a fine-tune: its peak memory by part, whether it fits, and what to train with.

    The model's own code runs a training step on tensors without data; if it cannot, or if only a number of parameters
    is given, the result is a rough closed-form estimate and says so. No weights are read and no GPU is needed.

    Args:
        model: a preset such as `llama-3-8b`, a SOURCE (only its config is read), a number of parameters such as `8B`,
            or a config.
        method: `full`, `lora`, `dora` or `qlora`; default: compare all.
        memory: memory to fit into, such as `24GB`; 0.5 GB of it are reserved.
        data_size: size of the training data: `5000` examples, `3M tokens`.
        analysis: an analysis.json of an earlier fine-tune, whose spectra give each module its rank.
        progress: receives progress reports; large models take minutes.
        **options: see `Options`.

    Raises:
        SourceError: there is no such model.
        OptionError: an invalid setting, memory or data size.
        MismatchError: the adapter, or the analysis, does not fit the model.
        MissingExtraError: transformers is not installed.
        TypeError: an unknown option.
    """
    if unknown := sorted(options.keys() - Options.__annotations__.keys()):
        msg = f"plan() got {', '.join(unknown)}; its options are {', '.join(Options.__annotations__)}"
        raise TypeError(msg)
    if method is not None and method not in get_args(Method):
        msg = f"`method` must be one of {', '.join(get_args(Method))}, got {method!r}"
        raise OptionError(msg)
    room = None if memory is None else Memory.parse(memory)
    data = None if data_size is None else DataSize.parse(data_size)
    forecaster = Forecaster(subject_of(model), progress)
    return _plan(forecaster, _request(forecaster.outline, method, room, data, options), analysis)


def _plan(forecaster: Forecaster, request: Request, analysis: str | Path | None) -> PlanResult:
    is_given = "method" in request.named
    methods = (request.setting.method,) if is_given else get_args(Method)
    for method in methods:
        forecaster.quick(request.using(method))
    advice = advise(forecaster, request)
    if advice is not None and analysis is not None:
        advice = _measured(forecaster, advice, analysis)
    if is_given:
        chosen = forecaster.confirm(request.using(request.setting.method))
        forecasts = (chosen,)
    else:
        chosen = advice.forecast if advice else forecaster.quick(leanest(request))
        forecasts = tuple(forecaster.quick(request.using(method)) for method in methods)
    outline = forecaster.outline
    return PlanResult(
        model=forecaster.subject.name,
        source=forecaster.subject.source,
        forecasts=forecasts,
        chosen=chosen,
        memory=request.memory,
        advice=advice,
        fits=_fits(request, chosen, advice),
        counts={} if outline is None else _counts(outline),
        model_params=forecaster.total_params,
        notes=tuple(_notes(forecaster, request.setting)),
    )


def _fits(request: Request, chosen: Forecast, advice: Advice | None) -> bool | None:
    """Whether the requested setting fits; see `PlanResult.fits`."""
    if request.memory is None:
        return None
    if "method" in request.named:
        return chosen.peak_bytes <= request.memory.usable_bytes
    is_shorter = advice is not None and advice.setting.length < request.setting.length
    return advice is not None and not (is_shorter and "max_length" in request.named)


def _request(
    outline: Outline | None, method: Method | None, memory: Memory | None, data: DataSize | None, options: Options
) -> Request:
    """The requested options, and for the others what suits the model and the data."""
    positions = outline.positions if outline else None
    length = options.get("max_length")
    if length is not None and positions is not None and length > positions:
        warnings.warn(f"`max_length` {length:,} exceeds the model's context of {positions:,} tokens", stacklevel=4)
    attention, supported = options.get("attention"), outline.attention if outline else "sdpa"
    if attention == "sdpa" and supported == "eager":
        msg = "`attention=sdpa`: this model's code supports only eager"
        raise OptionError(msg)
    rule, rank, target = rule_for(data), options.get("rank"), options.get("target")
    rank = rule.rank if rank is None else rank
    lora = LoRAConfig(rank=rank, alpha=2.0 * rank, dropout=rule.dropout, target=target or LoRAConfig().target)
    setting = PlanSetting(
        method=method or "lora",
        lora=lora,
        dtype=options.get("dtype", "bfloat16"),
        optimizer=options.get("optimizer", "adamw"),
        batch_size=options.get("batch_size", 1),
        length=min(DEFAULT_LENGTH, positions or DEFAULT_LENGTH) if length is None else length,
        gradient_checkpointing=options.get("gradient_checkpointing", False),
        attention=attention or supported,
    )
    given = {"method": method, **options, "batch_size": setting.batch_size > 1}
    return Request(setting, frozenset(name for name, value in given.items() if value), memory, data)


def _counts(outline: Outline) -> dict[str, int]:
    counts = {}
    for target in TARGETS:
        try:
            counts[target] = outline.adapter(LoRAConfig(rank=1, target=target)).trainable_params
        except MismatchError:  # a model without such layers
            continue
    return counts


def _measured(forecaster: Forecaster, advice: Advice, analysis: str | Path) -> Advice:
    """The advice with ranks from an analysis, and the forecast for these."""
    lora = advice.setting.lora
    if lora is None or forecaster.outline is None:
        msg = "`analysis` gives ranks to the adapter of a model whose config is known; this plan has none"
        raise OptionError(msg)
    measured = measured_ranks(analysis, forecaster.outline.adapter(lora), rank=lora.rank)
    forecast = forecaster.full(replace(advice.setting, lora=ranks_of(lora, measured.ranks)))
    return with_measured(replace(advice, forecast=replace(forecast, setting=advice.setting)), measured)


def _notes(forecaster: Forecaster, setting: PlanSetting) -> list[str]:
    """What a reader should know about the numbers."""
    notes = list(forecaster.caveats)
    outline = forecaster.outline
    if outline is None:
        notes.append("A rough closed-form estimate for a typical model with this number of parameters.")
        return notes
    if outline.linear_params < outline.total_params / 2:
        share = outline.linear_params / outline.total_params
        notes.append(
            f"Linear layers have {share:.0%} of the weights; qlora does not quantize the rest, such as fused experts."
        )
    if outline.attention == "eager" and setting.attention == "eager":
        notes.append("The model's code supports only eager attention, which stores the full attention matrix.")
    return notes


def check_prediction(
    model: "str | Path | Mapping[str, Any] | PretrainedConfig", setting: PlanSetting
) -> PredictionCheck:
    """Run a real training step with random weights on this machine's CPU, and compare its memory with a simulation.

    Args:
        model: as `plan` takes it, but not a number of parameters.
        setting: the setting to check.

    Raises:
        OptionError: there is no config, or this machine's memory is too small.
        EckartError: the step failed.
    """
    subject = subject_of(model)
    if subject.config is None:
        msg = f"{subject.name} cannot be measured; give a model whose config is known"
        raise OptionError(msg)
    predicted = simulate(subject.config, setting, device="cpu").peak_bytes
    free = available_bytes()
    if predicted + RESERVED_BYTES > free:
        msg = f"`measure` needs {predicted / 1e9:.1f} GB of memory on this machine, and {free / 1e9:.1f} GB are free"
        raise OptionError(msg)
    measured = measure(subject.config, setting)
    return PredictionCheck(setting.method, predicted, measured.peak_bytes, measured.seconds)
