"""How an adapter is trained: the settings, and what is wrong with them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from eckart.errors import OptionError

if TYPE_CHECKING:
    import torch

Schedule = Literal["linear", "cosine", "constant"]
Dtype = Literal["auto", "float32", "bfloat16"]
Keep = Literal["best", "last"]


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps: optimizer steps; if None, `epochs` decides.
        epochs: passes over the data; one if neither is given.
        batch_size: sequences per batch and process.
        accumulate: batches per optimizer step (gradient accumulation).
        learning_rate: peak learning rate (AdamW) of lora_A and of everything else that trains except lora_B.
        lora_plus_ratio: learning-rate multiplier for lora_B (Hayou et al. 2024, "LoRA+", recommend 16).
        schedule: learning-rate schedule after warm-up.
        warmup: share of the steps used for warm-up.
        weight_decay: weight decay (AdamW).
        max_gradient_norm: gradients of a larger norm are clipped to it.
        seed: seed of the factors' initial values, the order of the data and dropout.
        dtype: data type of the base weights and of the products with them; factors, their gradients and the optimizer
            are float32. `auto` is bfloat16 on a GPU that supports it, else float32.
        device: `auto`, `cpu` or `cuda`; CUDA_VISIBLE_DEVICES selects one of several GPUs.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more time.
        quantize: `nf4` stores the linear weights of the base in four bits.
        save_every: steps between checkpoints; if None, a tenth of all steps.
        eval_every: steps between measurements of the held-out loss; if None, a tenth of all steps.
        keep: the adapter to keep: `best`, of the measured steps the one with the lowest held-out loss; or `last`.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 4
    accumulate: int = 1
    learning_rate: float = 2e-4
    lora_plus_ratio: float = 1.0
    schedule: Schedule = "linear"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    seed: int = 0
    dtype: Dtype = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    quantize: Literal["nf4"] | None = None
    save_every: int | None = None
    eval_every: int | None = None
    keep: Keep = "best"

    def __post_init__(self) -> None:
        """Refuse invalid settings, with all faults."""
        faults = [
            f"`{name}` must be a whole number of at least 1, got {value}"
            for name in ("steps", "batch_size", "accumulate", "save_every", "eval_every")
            if (value := getattr(self, name)) is not None and (type(value) is not int or value < 1)
        ]
        if self.steps is not None and self.epochs is not None:
            faults.append("`steps` and `epochs` are both given; choose one")
        positive = ("epochs", "learning_rate", "lora_plus_ratio", "max_gradient_norm")
        faults += [
            f"`{name}` must be a positive number, got {value}"
            for name in positive
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and value > 0)
        ]
        if not 0 <= self.warmup < 1:
            faults.append(f"`warmup` is a share of the steps, from 0 to below 1, got {self.warmup}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            faults.append(f"`weight_decay` must be zero or more, got {self.weight_decay}")
        for name, choices in (
            ("schedule", get_args(Schedule)),
            ("dtype", get_args(Dtype)),
            ("quantize", (None, "nf4")),
            ("keep", get_args(Keep)),
        ):
            if getattr(self, name) not in choices:
                listed = ", ".join(str(choice) for choice in choices if choice)
                faults.append(f"`{name}` must be one of {listed}, got {getattr(self, name)!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            faults.append(
                f"`device` must be auto, cpu or cuda, got {self.device!r}; select a GPU by CUDA_VISIBLE_DEVICES"
            )
        elif self.device == "cuda" and not _has_cuda():
            faults.append("`device=cuda`: there is no CUDA device")
        elif fault := _connection_fault(self.device):
            faults.append(fault)
        if faults:
            msg = "invalid training settings"
            raise OptionError.listing(msg, faults)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that `dtype` means on this machine."""
        import torch

        if self.dtype == "auto":
            has_bfloat16 = self.torch_device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if has_bfloat16 else torch.float32
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """The device of this process; of several GPUs the one that torchrun assigned."""
        import torch

        if self.device == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def lower_memory(self, max_length: int) -> str:
        """Which settings to lower when memory is too small, the cheapest in time and quality first."""
        advice = []
        if self.batch_size > 1:
            advice.append(
                f"`batch_size={self.batch_size // 2}` (now {self.batch_size}) "
                f"with `accumulate={self.accumulate * 2}` (now {self.accumulate})"
            )
        if not self.gradient_checkpointing:
            advice.append("`gradient_checkpointing`")
        if self.quantize is None:
            advice.append("`quantize=nf4`")
        advice.append(f"`max_length={max_length // 2}` (now {max_length})")
        return ", ".join(advice)


def _connection_fault(device: str) -> str | None:
    """Why the processes that were started together on this machine cannot be connected, or None."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes == 1 or device == "cpu" or not _has_cuda():
        return None
    import torch
    from torch.distributed import is_nccl_available

    if not is_nccl_available():
        return "GPUs are connected by NCCL, which this torch lacks: start one process, or use `device=cpu`, with gloo"
    if processes > (gpus := torch.cuda.device_count()):
        return (
            f"{processes} processes were started on this machine, and NCCL needs a GPU for each, of which there are "
            f"{gpus}: start as many, or use `device=cpu`, with gloo"
        )
    return None


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
