"""Leading directions of each layer's inputs, and of its weight's gradient, from data.

Neither inputs nor gradients are stored. Their products with a thin block are summed over the batches, and the block is
orthonormalized between passes: subspace iteration with (in + out) · (rank + 16) numbers in memory per layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eckart.errors import MismatchError, NotFiniteError
from eckart.nn.adapted import AdaptedModule

Batches = Sequence[Mapping[str, Tensor]]
Modules = Mapping[str, AdaptedModule]
Blocks = dict[str, Tensor]

_SPARE = 16  # further columns of a block, for accuracy
_INPUT_PASSES = 3
_GRADIENT_ROUNDS = 2  # of two passes each


def activation_directions(
    model: nn.Module, modules: Modules, ranks: Mapping[str, int], batches: Batches, generator: torch.Generator
) -> Blocks:
    """Leading right singular vectors of each layer's inputs X `(tokens, in_features)`, without padding.

    Returns:
        By module, shape `(rank, in_features)`, orthonormal rows, float64.

    Raises:
        MismatchError: a layer is not used with these batches.
        NotFiniteError: the inputs of a layer contain NaN or Inf.
    """
    blocks = _random_blocks(modules, ranks, generator)
    directions: Blocks = {}
    for _ in range(_INPUT_PASSES):
        sums = _gram_products(model, modules, batches, blocks)
        # The eigenvectors of Ωᵀ·XᵀX·Ω are the best in the span of Ω.
        directions = {path: (block @ _leading(block.T @ sums[path], ranks[path])).T for path, block in blocks.items()}
        blocks = {path: torch.linalg.qr(total)[0] for path, total in sums.items()}
    return directions


def gradient_directions(
    model: nn.Module, modules: Modules, ranks: Mapping[str, int], batches: Batches, generator: torch.Generator
) -> dict[str, tuple[Tensor, Tensor]]:
    """Leading singular vectors of the gradient of each weight, summed over the batches.

    Returns:
        By module, left vectors `(out_features, rank)` and right ones `(rank, in_features)`, float64.

    Raises:
        MismatchError: the model returns no loss, or a layer is not used.
        NotFiniteError: gradients contain NaN or Inf.
    """
    blocks, left = _random_blocks(modules, ranks, generator), {}
    sums: Blocks = {}
    for _ in range(_GRADIENT_ROUNDS):
        # G·Ω = Σ gᵀ(x·Ω), then Gᵀ·Q = Σ xᵀ(g·Q).
        sums = _summed(model, modules, batches, lambda path, x, g, blocks=blocks: g.T @ (x @ blocks[path]))
        left = {path: torch.linalg.qr(total)[0] for path, total in sums.items()}
        sums = _summed(model, modules, batches, lambda path, x, g, left=left: x.T @ (g @ left[path]))
        blocks = {path: torch.linalg.qr(total)[0] for path, total in sums.items()}
    directions = {}
    for path, Q in left.items():
        U, _, Vh = torch.linalg.svd(sums[path].T, full_matrices=False)
        directions[path] = Q @ U[:, : ranks[path]], Vh[: ranks[path]]
    return directions


@torch.no_grad()
def _gram_products(model: nn.Module, modules: Modules, batches: Batches, blocks: Blocks) -> Blocks:
    """XᵀX·Ω of each layer, summed over the batches."""
    sums = {path: torch.zeros_like(block) for path, block in blocks.items()}
    mask: Tensor | None = None

    def add(path: str, x: Tensor, _: Tensor) -> None:
        rows = x[mask.bool()] if mask is not None and mask.shape == x.shape[:-1] else x
        # In float64: in float32 the squares of the few directions of attention sinks would hide all others.
        rows = rows.flatten(0, -2).double()
        sums[path] += rows.T @ (rows @ blocks[path])

    with _without_dropout(model), _hooked(modules, add):
        for batch in batches:
            mask = batch.get("attention_mask")
            model(**batch)
    _check(sums)
    return sums


def _summed(
    model: nn.Module, modules: Modules, batches: Batches, term: Callable[[str, Tensor, Tensor], Tensor]
) -> Blocks:
    """The sum over all batches of a term of each layer's inputs and output gradients, in float64."""
    sums: Blocks = {}

    def backward_of(path: str, x: Tensor, y: Tensor) -> None:
        rows = x.detach().flatten(0, -2)

        def add(g: Tensor) -> None:
            sums[path] = term(path, rows.double(), g.flatten(0, -2).double()) + sums.get(path, 0)

        y.register_hook(add)

    with _without_dropout(model), _hooked(modules, backward_of), torch.enable_grad():
        for batch in batches:
            loss = getattr(model(**batch), "loss", None)
            if not isinstance(loss, Tensor):
                msg = "the model returns no loss: pass batches with labels"
                raise MismatchError(msg)
            loss.backward()
    model.zero_grad(set_to_none=True)
    _check({path: sums.get(path, torch.zeros(1)) for path in modules})
    return sums


def _random_blocks(modules: Modules, ranks: Mapping[str, int], generator: torch.Generator) -> Blocks:
    """Orthonormal random columns for each layer's inputs."""
    blocks = {}
    for path, module in modules.items():
        rows = module.rows()
        drawn = torch.randn(
            rows.shape[1], min(ranks[path] + _SPARE, *rows.shape), generator=generator, dtype=torch.float64
        )
        blocks[path] = torch.linalg.qr(drawn.to(rows.device))[0]
    return blocks


def _leading(symmetric: Tensor, count: int) -> Tensor:
    return torch.linalg.eigh((symmetric + symmetric.T) / 2)[1].flip(1)[:, :count]


def _check(sums: Blocks) -> None:
    if broken := [path for path, total in sums.items() if not torch.isfinite(total).all()]:
        msg = "with these batches the values of some layers are not finite"
        raise NotFiniteError.listing(msg, broken)
    if unreached := [path for path, total in sums.items() if not total.any()]:
        msg = "with these batches some layers are not used, or their inputs are all zero"
        raise MismatchError.listing(msg, unreached)


@contextmanager
def _hooked(modules: Modules, see: Callable[[str, Tensor, Tensor], Any]) -> Iterator[None]:
    """Call `see` with every adapted layer's input and output when it computes."""
    with ExitStack() as stack:
        for path, module in modules.items():

            def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, path: str = path) -> None:
                see(path, inputs[0], output)

            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block, so that all passes are equal."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
