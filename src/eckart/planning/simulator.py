"""A training step run on tensors that hold no data, and the bytes that it keeps alive counted."""

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
from eckart.planning.dataless import DATALESS, dataless
from eckart.planning.kernels import as_on_cuda
from eckart.planning.setting import PlanSetting
from eckart.planning.simulation import Simulation, SimulationError
from eckart.planning.step import TrainingStep

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_GRANULARITY = {"cpu": 1, "cuda": 512}  # bytes: torch's allocator for CUDA hands out multiples of 512


def simulate(
    config: "str | Path | Mapping[str, Any] | PretrainedConfig",
    setting: PlanSetting,
    *,
    device: Literal["cpu", "cuda"] = "cuda",
) -> Simulation:
    """Peak memory of one training step, from the model's config alone: no weights, no device, no values.

    The model's own code, eckart's layers and loss, and AdamW run forward, backward and through an update, as in the
    second and every later step of `eckart train`. What a library holds beside its tensors (a CUDA context, the working
    memory of a kernel) and what an allocator loses between them is not in it.

    Args:
        config: what `read_architecture` takes.
        setting: how to train, and on how much.
        device: whose allocator rounds the bytes.

    Raises:
        SourceError: there is no such model.
        MismatchError: the adapter does not fit the model.
        SimulationError: the model's code needs values; a closed form has to serve.
    """
    began = time.perf_counter()
    architecture = read_architecture(config)
    try:
        with quiet_transformers(), _quiet_torch(), dataless():
            step = TrainingStep(build_model(architecture, setting), setting, DATALESS)
            step.warm()
            with as_on_cuda() if device == "cuda" else nullcontext():
                highest = account(step, granularity=_GRANULARITY[device])
    except EckartError:
        raise
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0][:200]
        what = f"{type(error).__name__}: {first_line}"
        msg = f"a model of type {architecture.model_type} cannot be run on tensors without data ({what})"
        raise SimulationError(msg) from error
    return Simulation(
        peak_bytes=highest.peak_bytes,
        parts=highest.parts,
        where=highest.where,
        trainable_params=sum(parameter.numel() for parameter in step.trained),
        total_params=step.total_params,
        seconds=time.perf_counter() - began,
        details=highest.details,
        notes=tuple(_notes(architecture, step)),
    )


def _notes(architecture: "PretrainedConfig", step: TrainingStep) -> Iterator[str]:
    """What the step does otherwise than the config or the setting says, or cannot tell."""
    setting, config = step.setting, step.model.config
    if setting.attention == "sdpa" and config._attn_implementation != "sdpa":
        yield f"{type(step.model).__name__} has no SDPA in transformers: its attention is {config._attn_implementation}"
    if getattr(architecture, "quantization_config", None):
        yield f"the checkpoint's own quantization is left out: the base is in {setting.dtype}, or NF4 with qlora"
    if any("expert" in key for key in config.get_text_config().to_dict()):
        yield "experts compute by grouped products, whose memory does not depend on which tokens go where"


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Without what torch writes of an operator that needs values, which the error says again."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
