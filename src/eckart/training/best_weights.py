"""The trained weights with the lowest held-out loss so far: in memory, in checkpoints, and back in the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eckart.errors import FileFormatError

FILE = "best.safetensors"  # in a checkpoint


@dataclass(frozen=True)
class BestWeights:
    """What trains, as it was after a step.

    Attributes:
        step: number of steps before it was measured.
        loss: held-out loss, in nats per token.
        tensors: by parameter name, on the CPU.
    """

    step: int
    loss: float
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, step: int, loss: float, trained: Mapping[str, Tensor]) -> "BestWeights":
        """A copy of the present values."""
        return cls(step, loss, {name: tensor.detach().to("cpu", copy=True) for name, tensor in trained.items()})

    @classmethod
    def load(cls, checkpoint: Path) -> "BestWeights | None":
        """Those stored in a checkpoint; None if it has none.

        Raises:
            FileFormatError: the file is damaged.
        """
        file = checkpoint / FILE
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as stored:
                facts = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # not a mapping
                return cls(int(facts["step"]), float(facts["loss"]), tensors)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            msg = f"{file}: cannot be read ({error})"
            raise FileFormatError(msg) from error

    def save(self, checkpoint: Path) -> None:
        """Store them in a checkpoint."""
        facts = {"step": str(self.step), "loss": repr(self.loss)}
        save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, checkpoint / FILE, facts)

    @torch.no_grad()
    def restore(self, trained: Mapping[str, Tensor]) -> None:
        """Give what trains these values again."""
        for name, tensor in trained.items():
            tensor.copy_(self.tensors[name])
