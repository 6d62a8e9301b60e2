"""Second moments of a model's layers in a file that several operations can use.

C = Σ x xᵀ over the inputs x of a layer on each kind of text, and G = Σ g gᵀ over the gradients g of the loss at its
outputs, on some of all texts.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from eckart.checkpoint.json_files import parse_json
from eckart.errors import FileFormatError, MismatchError, SourceError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "eckart-moments/2"
FIELD = "eckart"  # of the file's metadata


class Moments:
    """A file of second moments; they are read when they are asked for.

    Attributes:
        file: the safetensors file.
        tokens: number of tokens of each kind of text, by its name.
        model: digest of the model and the text that they are from.
        inputs: of each linear module, by its name in transformers, the module whose inputs are the same.

    Raises:
        SourceError, FileFormatError: there is no such file, or it contains no second moments.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        facts = self._facts
        self.tokens: Mapping[str, int] = facts["tokens"]
        self.model: str = facts["model"]
        self.inputs: Mapping[str, str] = facts["inputs"]

    def __contains__(self, module: str) -> bool:
        return module in self.inputs

    def of(self, module: str, columns: int) -> "list[Tensor]":
        """The second moments of a module's inputs, one for each kind of text.

        Args:
            module: its name in transformers.
            columns: its number of inputs.

        Returns:
            float32, shape `(columns, columns)` each, mapped from the file.

        Raises:
            MismatchError: the module had another number of inputs.
        """
        owner = self.inputs[module]
        return [self._read(tensor_name(kind, owner), module, columns) for kind in self.tokens]

    def of_gradients(self, module: str, rows: int) -> "Tensor":
        """The second moment of the gradients of the loss at a module's outputs.

        Args:
            module: its name in transformers.
            rows: its number of outputs.

        Returns:
            float32, shape `(rows, rows)`, mapped from the file.

        Raises:
            MismatchError: the module had another number of outputs.
        """
        return self._read(gradient_name(module), module, rows)

    def _read(self, tensor: str, module: str, side: int) -> "Tensor":
        import torch

        with safe_open(self.file, framework="pt") as file:
            found = file.get_tensor(tensor)
        if found.shape != (side, side) or found.dtype != torch.float32:
            msg = f"{self.file}: {module} has moments of shape {tuple(found.shape)}, expected {(side, side)}"
            raise MismatchError(msg)
        return found

    def total(self, module: str, columns: int) -> "Tensor":
        """The second moment of a module's inputs on all kinds of text, each with the same weight, per token.

        Arguments and errors as of `of`.
        """
        import torch

        return sum(self.per_token(module, columns), torch.zeros((), dtype=torch.float64)) / len(self.tokens)

    def per_token(self, module: str, columns: int) -> "list[Tensor]":
        """The mean of x·xᵀ over the tokens of each kind of text, in float64; arguments and errors as of `of`."""
        import torch

        counts = self.tokens.values()
        return [each.to(torch.float64) / n for each, n in zip(self.of(module, columns), counts, strict=True)]

    def note(self, columns: int) -> str | None:
        """A warning if there are fewer tokens than inputs of the widest layer; None if there are enough."""
        total = sum(self.tokens.values())
        if total >= columns:
            return None
        return (
            f"{total:,} calibration tokens are fewer than the {columns:,} inputs of the widest layer: the measured "
            "output errors are those of these tokens only; calibrate with more text"
        )

    @cached_property
    def _facts(self) -> Mapping[str, Any]:
        try:
            with safe_open(self.file, framework="numpy") as file:
                facts = parse_json((file.metadata() or {})[FIELD])
                names = set(file.keys())
        except FileNotFoundError:
            msg = f"{self.file}: no such file of second moments"
            raise SourceError(msg) from None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            msg = f"{self.file}: not a file of second moments ({error})"
            raise FileFormatError(msg) from None
        faults = list(_faults(facts, names))
        if faults:
            msg = f"{self.file}: not a usable file of second moments"
            raise FileFormatError.listing(msg, faults)
        return facts


def metadata(*, tokens: Mapping[str, int], model: str, inputs: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file of second moments; arguments as the attributes of `Moments`."""
    return {FIELD: json.dumps({"format": FORMAT, "tokens": tokens, "model": model, "inputs": inputs})}


def tensor_name(kind: str, module: str) -> str:
    """The name in the file of the moments of a module's inputs on one kind of text."""
    return f"inputs/{kind}/{module}"


def gradient_name(module: str) -> str:
    """The name in the file of the moment of the gradients at a module's outputs."""
    return f"gradients/{module}"


def _faults(facts: Any, names: set[str]) -> Iterator[str]:
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        yield f"format: expected {FORMAT}"
        return
    tokens, inputs = facts.get("tokens"), facts.get("inputs")
    if not isinstance(tokens, dict) or not tokens or not all(type(n) is int and n > 0 for n in tokens.values()):
        yield "tokens: expected the number of tokens of each kind of text"
    elif not isinstance(inputs, dict) or not all(isinstance(owner, str) for owner in inputs.values()):
        yield "inputs: expected the name of a module for each module"
    elif missing := _expected(tokens, inputs) - names:
        yield f"{len(missing)} tensors are missing, such as {min(missing)}"
    if not isinstance(facts.get("model"), str):
        yield "model: expected a fingerprint"


def _expected(tokens: Mapping[str, int], inputs: Mapping[str, str]) -> set[str]:
    of_inputs = {tensor_name(kind, owner) for kind in tokens for owner in inputs.values()}
    return of_inputs | {gradient_name(module) for module in inputs}
