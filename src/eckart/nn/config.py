"""The configuration of a new adapter."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from eckart.errors import OptionError

Bias = Literal["none", "lora-only", "all"]
Method = Literal["lora", "dora"]
Init = Literal["zero", "pissa", "olora", "eva", "loftq", "lora-ga"]


@dataclass(frozen=True)
class LoRAConfig:
    """A new adapter: ΔW = scaling · lora_B · lora_A on every targeted module.

    Attributes:
        rank: number of rows of lora_A.
        alpha: the update is scaled by alpha / rank.
        dropout: dropout probability of the input of lora_A, while training.
        target: names, dotted suffixes, regexes or presets (`attention`, `attention-min`, `mlp`, `all-linear`), by
            PEFT's rules; presets take linear and Conv1D layers only.
        exclude: modules not to adapt, in the same form; takes precedence over `target`.
        bias: which of the model's biases train: none, those of adapted modules, or all.
        method: `dora` also trains the norm of each row of the weight (Liu et al. 2024).
        init: initialization of the factors; see `eckart.nn.initialize`.
        rslora: scale by alpha / √rank instead (Kalajdzievski 2023).
        rank_pattern: other ranks for modules that match a pattern; the first match applies.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target: str | Sequence[str] = ("all-linear",)
    exclude: str | Sequence[str] = ()
    bias: Bias = "none"
    method: Method = "lora"
    init: Init = "zero"
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an invalid configuration, with all faults."""
        for name in ("target", "exclude"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        faults = [
            f"`rank`{f' of {where}' if where else ''} must be a whole number of at least 1, got {rank}"
            for where, rank in {"": self.rank, **self.rank_pattern}.items()
            if type(rank) is not int or rank < 1
        ]
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            faults.append(f"`alpha` must be a positive number, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            faults.append(f"`dropout` must be from 0 to below 1, got {self.dropout}")
        for name, choices in (("bias", Bias), ("method", Method), ("init", Init)):
            if getattr(self, name) not in get_args(choices):
                faults.append(f"`{name}` must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        if not self.target:
            faults.append("`target` must name at least one module or preset")
        if faults:
            msg = "invalid adapter configuration"
            raise OptionError.listing(msg, faults)
