"""A training step run on tensors without data, and the peak of the bytes that it keeps alive."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eckart.errors import EckartError
from eckart.evaluation.model import quiet_transformers
from eckart.planning.account import account
from eckart.planning.architecture import build_model, read_architecture
from eckart.planning.dataless import as_on_cuda, dataless, dataless_step, pretended_devices
from eckart.planning.forecast import Forecast
from eckart.planning.setting import PlanSetting
from eckart.planning.step import TrainingStep

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_GRANULARITY = {"cpu": 1, "cuda": 512}  # bytes: torch's allocator for CUDA hands out multiples of 512


class SimulationError(EckartError):
    """The model's code cannot run on tensors without data, so only a closed-form estimate is possible."""


def simulate(
    config: "str | Path | Mapping[str, Any] | PretrainedConfig",
    setting: PlanSetting,
    *,
    device: Literal["cpu", "cuda"] = "cuda",
) -> Forecast:
    """Peak memory of one training step, from the model's config alone: no weights, no device, no values.

    The model's own code, eckart's layers and loss, and AdamW run forward, backward and through an update, as in the
    second and every later step of `eckart train`. The memory of libraries (a CUDA context, the workspace of a kernel)
    and the fragmentation of an allocator are not included.

    Args:
        config: what `read_architecture` takes.
        setting: how to train, and the size of a step.
        device: whose allocator rounds the bytes.

    Raises:
        SourceError: there is no such model.
        MismatchError: the adapter does not fit the model.
        SimulationError: the model's code needs values.
    """
    began = time.perf_counter()
    architecture = read_architecture(config)
    try:
        with (
            quiet_transformers(),
            _quiet_torch(),
            pretended_devices(setting.gpus if setting.shards_parameters else 1) as mesh,
            dataless(),
        ):
            step = dataless_step(build_model(architecture, setting), setting, mesh)
            step.warm()
            with as_on_cuda() if device == "cuda" else nullcontext():
                parts, details, where = account(step, granularity=_GRANULARITY[device])
    except Exception as error:
        if not _comes_from_model(error):
            raise
        first_line = (str(error).splitlines() or [""])[0][:200]
        what = f"{type(error).__name__}: {first_line}"
        msg = f"a model of type {architecture.model_type} cannot run on tensors without data ({what})"
        raise SimulationError(msg) from error
    return Forecast(
        setting=setting,
        peak_bytes=sum(parts.values()),
        parts=parts,
        where=where,
        trainable_params=sum(parameter.numel() for parameter in step.trained),
        total_params=step.total_params,
        seconds=time.perf_counter() - began,
        details=details,
        notes=tuple(_notes(architecture, step)),
    )


def _comes_from_model(error: Exception) -> bool:
    """Whether the model's code raised an error, or torch because an operator needs values; else it is a bug of ours."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
        UnsupportedOperatorException,
    )

    needs_values = (
        *(DataDependentOutputException, DynamicOutputShapeException),
        *(UnsupportedFakeTensorException, UnsupportedOperatorException),
    )
    if isinstance(error, needs_values):
        return True
    if isinstance(error, EckartError):
        return False
    modules, frame = [], error.__traceback__
    while frame is not None:
        modules.append(str(frame.tb_frame.f_globals.get("__name__")).partition(".")[0])
        frame = frame.tb_next
    return modules[-1] != "eckart" and any(name.startswith("transformers") for name in modules)


def _notes(architecture: "PretrainedConfig", step: TrainingStep) -> Iterator[str]:
    """How the simulated step differs from what the config or the setting says."""
    setting, config = step.setting, step.model.config
    if setting.attention == "sdpa" and config._attn_implementation != "sdpa":
        yield f"{type(step.model).__name__} has no SDPA in transformers: its attention is {config._attn_implementation}"
    if getattr(architecture, "quantization_config", None):
        yield f"the checkpoint's own quantization is ignored: the base is in {setting.dtype}, or NF4 with qlora"
    if any("expert" in key for key in config.get_text_config().to_dict()):
        yield "experts compute by grouped products, whose memory does not depend on which tokens go where"


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Suppress torch's log of an operator that needs values; the error says the same."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
