"""A transformers model built from its config, and its weights from any checkpoint that eckart reads, in float32."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.checkpoint.fused_experts import with_fused_experts
from eckart.checkpoint.module_tree import tree_naming
from eckart.errors import SourceError
from eckart.evaluation.model import outline_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OutlinedModel:
    """A causal language model without weights, until they are loaded module by module.

    Attributes:
        model: transformers' model, on the meta device except for its computed buffers.
        stored: the checkpoint's name of each tensor of the model, by its path there.

    Raises:
        SourceError: transformers has no language model for the config.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device | str = "cpu") -> None:
        self.device, self._checkpoint = torch.device(device), with_fused_experts(checkpoint)
        self.model: PreTrainedModel = outline_model(checkpoint.source).eval()
        self.stored = self._stored_names()
        self._fill_buffers()

    def load(self, module: nn.Module, prefix: str = "", *, skip: str = "\n") -> None:
        """Read the parameters of a module, and its buffers that are stored.

        Args:
            module: the model or a part of it.
            prefix: path of the module in the model, with a dot at its end.
            skip: what begins the paths of tensors to leave out.

        Raises:
            SourceError: the checkpoint lacks a parameter.
        """
        missing, values = [], dict[str, Tensor]()  # tied parameters stay one
        for name, is_parameter in _tensors(module):
            path = prefix + name
            if path.startswith(skip):
                continue
            stored = self.stored.get(path)
            if stored is not None:
                if stored not in values:
                    value = _floating(self._checkpoint.read(stored)).to(self.device)
                    values[stored] = nn.Parameter(value, requires_grad=False) if is_parameter else value
                owner, _, leaf = name.rpartition(".")
                _assign(module.get_submodule(owner), leaf, values[stored])
            elif is_parameter:
                missing.append(path)
        if missing:
            msg = f"{self._checkpoint.source}: weights of transformers' {type(self.model).__name__} are missing"
            raise SourceError.listing(msg, missing)

    def _stored_names(self) -> dict[str, str]:
        naming, prefix = tree_naming(self._checkpoint), self.model.base_model_prefix
        tensors = {name for name, _ in _tensors(self.model)}
        names: dict[str, str] = {}
        tied = self._checkpoint.tied
        for stored in (*self._checkpoint.tensors, *tied):
            tree = naming(stored)
            path = tree if tree in tensors else f"{prefix}.{tree}"
            if path in tensors:
                names[path] = tied.get(stored, stored)
        return names

    def _fill_buffers(self) -> None:
        """Compute the buffers that files do not contain, such as the frequencies of rotary embeddings."""
        for module in self.model.modules():
            own = {leaf: buffer for leaf, buffer in module._buffers.items() if buffer is not None}
            module._buffers.update((leaf, torch.empty_like(each, device=self.device)) for leaf, each in own.items())
            if own:
                self.model._init_weights(module)


def dense_model(checkpoint: Checkpoint, *, device: torch.device | str = "cpu") -> "PreTrainedModel":
    """The causal language model of a checkpoint in any encoding, dequantized to float32, in evaluation mode.

    Raises:
        SourceError: transformers has no language model for the config, or the checkpoint lacks some of its weights.
        MissingExtraError: transformers is not installed.
    """
    outlined = OutlinedModel(checkpoint, device=device)
    outlined.load(outlined.model)
    return outlined.model


def drop(module: nn.Module) -> None:
    """Release the parameters of a module; they are on the meta device afterwards."""
    for part in module.modules():
        for leaf, parameter in part._parameters.items():
            if parameter is not None:
                _assign(part, leaf, nn.Parameter(parameter.to("meta"), requires_grad=False))


def _tensors(module: nn.Module) -> Iterator[tuple[str, bool]]:
    """Name of every parameter and buffer, tied ones each time, and whether it is a parameter."""
    yield from ((name, True) for name, _ in module.named_parameters(remove_duplicate=False))
    yield from ((name, False) for name, _ in module.named_buffers(remove_duplicate=False))


def _floating(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.is_floating_point() else value


def _assign(module: nn.Module, leaf: str, value: Tensor) -> None:
    if leaf in module._parameters:
        module._parameters[leaf] = cast("nn.Parameter", value)
    else:
        module._buffers[leaf] = value
