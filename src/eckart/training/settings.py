"""How an adapter is trained: the settings of a run, and the faults in them."""

import math
import os
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from eckart.errors import OptionError

Schedule = Literal["linear", "cosine", "constant"]
Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps: optimizer steps; without, `epochs` decides.
        epochs: passes over the data; one where neither is given.
        batch_size: sequences a process takes at once.
        accumulate: such batches a step.
        learning_rate: the peak, of lora_A and all else that trains.
        lora_plus_ratio: how many times that is the rate of lora_B (Hayou et al. 2024, "LoRA+"; they advise 16).
        schedule: how the rate falls after the warmup.
        warmup: share of the steps over which the rate rises.
        weight_decay: of AdamW.
        max_gradient_norm: beyond it the gradient is scaled down.
        seed: of the factors' start, the order of the data and dropout.
        dtype: of the base weights and the products with them; factors, their gradients and the optimizer stay float32.
            `auto` is bfloat16 on a GPU that has it, else float32.
        device: `auto`, `cpu` or `cuda`; CUDA_VISIBLE_DEVICES chooses among several.
        gradient_checkpointing: compute activations again rather than keep them: less memory, a third more time.
        quantize: `nf4` keeps the base's linear weights in four bits.
        save_every: steps between checkpoints; without, a tenth of the run.
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

    def __post_init__(self) -> None:
        """Refuse what cannot train, all faults at once."""
        faults = [
            f"{name} must be a whole number from 1, got {value}"
            for name in ("steps", "batch_size", "accumulate", "save_every")
            if (value := getattr(self, name)) is not None and (type(value) is not int or value < 1)
        ]
        if self.steps is not None and self.epochs is not None:
            faults.append("steps and epochs are both given; one of them says how long to train")
        positive = ("epochs", "learning_rate", "lora_plus_ratio", "max_gradient_norm")
        faults += [
            f"{name} must be a positive number, got {value}"
            for name in positive
            if (value := getattr(self, name)) is not None and not (math.isfinite(value) and value > 0)
        ]
        if not 0 <= self.warmup < 1:
            faults.append(f"warmup is a share of the steps, from 0 to below 1, got {self.warmup}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            faults.append(f"weight_decay must be zero or more, got {self.weight_decay}")
        for name, choices in (
            ("schedule", get_args(Schedule)),
            ("dtype", get_args(Dtype)),
            ("quantize", (None, "nf4")),
        ):
            if getattr(self, name) not in choices:
                told = ", ".join(str(choice) for choice in choices if choice)
                faults.append(f"{name} must be one of {told}, got {getattr(self, name)!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            faults.append(f"device must be auto, cpu or cuda, got {self.device!r}; CUDA_VISIBLE_DEVICES chooses a GPU")
        elif self.device == "cuda" and not torch.cuda.is_available():
            faults.append("device cuda: no CUDA device is there")
        if faults:
            msg = "these settings cannot train an adapter:"
            raise OptionError.listing(msg, faults)

    @property
    def torch_dtype(self) -> torch.dtype:
        """What `dtype` is on this machine."""
        if self.dtype == "auto":
            has_bfloat16 = self.torch_device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if has_bfloat16 else torch.float32
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """Where this process computes: of several GPUs the one that torchrun gave it."""
        if self.device == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def smaller(self, max_length: int) -> str:
        """What to change where memory is too small, in the order in which it costs least."""
        advice = []
        if self.batch_size > 1:
            advice.append(
                f"--batch-size {self.batch_size // 2} (now {self.batch_size}) with --accumulate {self.accumulate * 2}"
            )
        if not self.gradient_checkpointing:
            advice.append("--gradient-checkpointing")
        if self.quantize is None:
            advice.append("--quantize nf4")
        advice.append(f"--max-length {max_length // 2} (now {max_length})")
        return ", ".join(advice)
