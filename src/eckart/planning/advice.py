"""What to train with, and why: the result of `advise`."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eckart.linalg import Allocation
from eckart.nn.config import LoRAConfig
from eckart.planning.forecast import Forecast
from eckart.planning.guide import EFFECTIVE_BATCH
from eckart.planning.setting import PlanSetting

_LAUNCH = {
    None: "eckart",
    "ddp": "torchrun --nproc-per-node {gpus} -m eckart",
    "fsdp": "accelerate launch --config_file fsdp.yaml --num_processes {gpus} -m eckart",
}
Source = Literal["rule", "simulation", "estimate", "spectrum", "given"]


@dataclass(frozen=True)
class Reason:
    """One piece of advice, why it is given and what that is based on."""

    what: str
    value: str
    why: str
    source: Source


@dataclass(frozen=True)
class Advice:
    """What to train with.

    Attributes:
        forecast: memory of the advised setting.
        reasons: the choices it consists of.
        next_steps: forecasts of better settings, which more memory would buy, by what is better.
        largest_batch: largest that fits at the advised length; None where no memory was given.
        largest_length: longest single sequence that fits.
        measured: ranks for each module, where spectra were given.
        analysis: the file with these spectra.
    """

    forecast: Forecast
    reasons: tuple[Reason, ...]
    next_steps: Mapping[str, Forecast] = field(default_factory=dict)
    largest_batch: int | None = None
    largest_length: int | None = None
    measured: Allocation | None = None
    analysis: Path | None = None

    @property
    def setting(self) -> PlanSetting:
        """The advised setting."""
        return self.forecast.setting

    def command(self, source: str) -> str:
        """The matching `eckart train`; empty where it has no such options, as for full fine-tuning."""
        setting, lora, default = self.setting, self.setting.adapter, LoRAConfig()
        if lora is None or setting.dtype == "float16" or setting.sharding not in _LAUNCH:
            return ""
        batch = setting.batch_size * setting.gpus
        options = {
            "--method dora": lora.method == "dora",
            "--quantize nf4": setting.method == "qlora",
            f"--rank {lora.rank}": True,
            f"--rank-pattern {shlex.quote(str(self.analysis))}": self.analysis is not None,
            f"--alpha {lora.alpha:g}": True,
            f"--dropout {lora.dropout:g}": True,
            **{f"--target {target}": lora.target != default.target for target in lora.target},
            f"--batch-size {setting.batch_size}": True,
            f"--accumulate {EFFECTIVE_BATCH // batch}": batch * 2 <= EFFECTIVE_BATCH,
            f"--max-length {setting.length}": True,
            "--gradient-checkpointing": setting.gradient_checkpointing,
            "--dtype float32": setting.dtype == "float32",
        }
        needed = (option for option, is_needed in options.items() if is_needed)
        launch = _LAUNCH[setting.sharding].format(gpus=setting.gpus)
        return " ".join([f"{launch} train {source} DATA -o adapter", *needed])

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
            "next_steps": [
                {"what": what, "peak_bytes": step.peak_bytes, "more_bytes": step.peak_bytes - self.forecast.peak_bytes}
                for what, step in self.next_steps.items()
            ],
        }
