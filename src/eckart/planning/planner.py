"""Plan a fine-tune: its memory by method, whether it fits, and what to train with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, get_args

from eckart.engine import Progress
from eckart.errors import MismatchError, OptionError
from eckart.nn.config import LoRAConfig
from eckart.planning.advice import Advice
from eckart.planning.advise import advise, with_measured_ranks
from eckart.planning.architecture import Outline
from eckart.planning.candidates import leanest
from eckart.planning.forecast import Forecast
from eckart.planning.forecaster import Forecaster
from eckart.planning.guide import parse_data_size
from eckart.planning.memory import Memory, Part
from eckart.planning.request import Options, Request, request_of
from eckart.planning.setting import Method, PlanSetting
from eckart.planning.subject import subject_of
from eckart.result import Result

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FORMAT = "eckart-plan/1"
MOST_GPUS = 64
TARGETS = ("attention-min", "attention", "mlp", "all-linear")


@dataclass(frozen=True, repr=False)
class PlanResult(Result):
    """Memory and advice for a fine-tune; of several GPUs, the memory of each.

    Attributes:
        model: name of the model.
        source: what `eckart train` takes for it, if anything.
        forecasts: forecast of the requested method, or of all methods.
        chosen: the forecast that the properties refer to: of the requested setting if a method was given, else of the
            advised one.
        memory: the memory to fit into.
        advice: what to train with; None if nothing fits.
        several: the least number of GPUs of that memory that hold the requested setting with FSDP, where one does not;
            None if one does, or none that was tried.
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
    several: Forecast | None = None

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
            "gpus": self.chosen.setting.gpus,
            "sharding": self.chosen.setting.sharding,
            "several_gpus": self.several
            and {
                "gpus": self.several.setting.gpus,
                "sharding": self.several.setting.sharding,
                "peak_bytes": self.several.peak_bytes,
            },
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
        memory: memory to fit into, such as `24GB`, or that of each of several GPUs, such as `8x80GB`; 0.5 GB of it are
            reserved.
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
    examples = None if data_size is None else parse_data_size(data_size)
    name, source, architecture = subject_of(model)
    forecaster = Forecaster(architecture, progress)
    request = request_of(forecaster.outline, method, room, examples, options)
    return _plan(forecaster, request, analysis, name=name, source=source)


def _plan(
    forecaster: Forecaster, request: Request, analysis: str | Path | None, *, name: str, source: str | None
) -> PlanResult:
    is_given = "method" in request.named
    methods = (request.setting.method,) if is_given else get_args(Method)
    for method in methods:
        forecaster.quick(request.using(method))
    advice = advise(forecaster, request)
    if advice is not None and analysis is not None:
        advice = with_measured_ranks(forecaster, advice, analysis)
    if is_given:
        chosen = forecaster.confirm(request.using(request.setting.method))
        forecasts = (chosen,)
    else:
        chosen = advice.forecast if advice else forecaster.quick(leanest(request))
        forecasts = tuple(forecaster.quick(request.using(method)) for method in methods)
    outline = forecaster.outline
    fits = _fits(request, chosen, advice)
    return PlanResult(
        model=name,
        source=source,
        forecasts=forecasts,
        chosen=chosen,
        memory=request.memory,
        advice=advice,
        fits=fits,
        counts={} if outline is None else _counts(outline),
        model_params=forecaster.total_params,
        notes=tuple(_notes(forecaster, request.setting)),
        several=_several(forecaster, request) if fits is False and request.setting.gpus == 1 else None,
    )


def _several(forecaster: Forecaster, request: Request) -> Forecast | None:
    """The forecast for the fewest GPUs that hold the requested setting with FSDP: a power of two up to `MOST_GPUS`."""
    assert request.memory is not None
    setting, before, gpus = request.using(request.setting.method), math.inf, 2
    while gpus <= MOST_GPUS:
        forecast = forecaster.quick(replace(setting, gpus=gpus, sharding="fsdp"))
        if forecast.peak_bytes <= request.memory.usable_bytes:
            return forecast
        if forecast.peak_bytes > 0.98 * before:
            return None  # what is not sharded is too large
        before, gpus = forecast.peak_bytes, 2 * gpus
    return None


def _fits(request: Request, chosen: Forecast, advice: Advice | None) -> bool | None:
    """Whether the requested setting fits; see `PlanResult.fits`."""
    if request.memory is None:
        return None
    if "method" in request.named:
        return chosen.peak_bytes <= request.memory.usable_bytes
    is_shorter = advice is not None and advice.setting.length < request.setting.length
    return advice is not None and not (is_shorter and "max_length" in request.named)


def _counts(outline: Outline) -> dict[str, int]:
    counts = {}
    for target in TARGETS:
        try:
            counts[target] = outline.adapter(LoRAConfig(rank=1, target=target)).trainable_params
        except MismatchError:  # a model without such layers
            continue
    return counts


def _notes(forecaster: Forecaster, setting: PlanSetting) -> list[str]:
    """What a reader should know about the numbers."""
    notes = list(forecaster.caveats)
    if setting.gpus > 1:
        notes.append(f"Memory of each of {setting.gpus} GPUs; a step has {setting.gpus} such batches.")
    if setting.sharding == "zero3":
        notes.append("ZeRO-3 is simulated as FSDP2 that shards everything: DeepSpeed's own buffers come on top.")
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
