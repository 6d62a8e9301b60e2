"""Recording what adapters learn: the size, spectrum and direction of every update at chosen steps of a training.

All of it is computed from the thin factors, for layers of the same shape together, in a small share of a step's time.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from eckart.errors import MismatchError, OptionError
from eckart.linalg import Spectrum, overlap, rounding_floor, stacked_svd, truncated_svd
from eckart.training.trajectory import Dynamics, LayerDynamics, SideDynamics

if TYPE_CHECKING:
    from eckart.nn import AdaptedModule

DIRECTIONS = 16
POINTS = 24

Product = tuple[Tensor, Tensor]
"""lora_B and lora_A of an update as matrices in float64, scale included."""


def recording_steps(total: int, points: int = POINTS) -> list[int]:
    """Steps at which to record a run: first and last, and between them half at doubling, half at equal distances.

    Updates find their directions in the first steps and grow during the rest of the run; the record shows both.

    Args:
        total: optimizer steps of the run.
        points: approximate number; shorter runs are recorded at every step.
    """
    if total <= points:
        return list(range(total + 1))
    shares = [place / (points // 2) for place in range(points // 2 + 1)]
    return sorted({round(total * share) for share in shares} | {round(total**share) for share in shares})


class DynamicsRecorder:
    """Records the `Dynamics` of a model's adapter while it trains.

    Attributes:
        dynamics: everything recorded and logged so far.
    """

    def __init__(
        self,
        model: nn.Module,
        at: Sequence[int] | None = None,
        *,
        name: str = "default",
        directions: int = DIRECTIONS,
        title: str = "",
        earlier: Dynamics | None = None,
    ) -> None:
        """Prepare a record.

        Args:
            model: a model with the adapter `name`.
            at: steps to record, such as `recording_steps` returns; None records at every call.
            name: name of the adapter.
            directions: number k of leading singular vectors of each base weight that updates are compared with;
                computed at the first record and stored, 4·k·(out + in) bytes per layer. 0 skips them.
            title: what is trained, for the title of a figure.
            earlier: record of the run that this one resumes, up to the step it resumes from (`Dynamics.forget_after`).

        Raises:
            MismatchError: `earlier` has other layers, ranks, base weights or directions.
        """
        self._at = None if at is None else frozenset(at)
        self._name = name
        self._subspaces: dict[str, tuple[Tensor, Tensor]] = {}
        layers = [_new_layer(path, module, name) for path, module in _adapted(model, name).items()]
        self.dynamics = Dynamics(title=title, directions=directions, layers=layers)
        if earlier is not None:
            self.dynamics = _continued(earlier, self.dynamics)

    @torch.no_grad()
    def record(self, model: nn.Module, step: int) -> None:
        """Record every layer after `step` optimizer steps, if the step was chosen and is not recorded yet.

        Raises:
            OptionError: a later step is already recorded.
        """
        dynamics = self.dynamics
        if step in dynamics.steps or (self._at is not None and step not in self._at):
            return
        if dynamics.steps and step < dynamics.steps[-1]:
            msg = f"step {step} comes after step {dynamics.steps[-1]} was recorded; `forget_after` goes back"
            raise OptionError(msg)
        modules, layers = _adapted(model, self._name), {layer.name: layer for layer in dynamics.layers}
        if dynamics.directions and not self._subspaces:
            start = time.perf_counter()
            for path, module in modules.items():
                self._subspaces[path] = _find_subspaces(layers[path], module, dynamics.directions)
            dynamics.subspace_seconds += time.perf_counter() - start
        start = time.perf_counter()
        products = {path: _product(module, self._name) for path, module in modules.items()}
        for paths in _of_one_shape(products):
            group = [layers[path] for path in paths]
            bases = [self._subspaces[path] for path in paths] if self._subspaces else None
            _record_updates(group, [products[path] for path in paths], bases)
        for path, module in modules.items():
            _record_factors(layers[path], module, self._name)
        dynamics.steps.append(step)
        dynamics.recording_seconds += time.perf_counter() - start

    def log(
        self,
        step: int,
        *,
        loss: float | None = None,
        learning_rate: float | None = None,
        gradient_norm: float | None = None,
        heldout_loss: float | None = None,
    ) -> None:
        """Log quantities of a step, counted from 1; later calls add to it. NaN and Inf are not logged.

        Args:
            step: the step of the batch; for `heldout_loss`, the number of steps before it was measured.
            loss: loss of the batch in nats per token, before the step changed the weights.
            learning_rate: learning rate of the step.
            gradient_norm: norm of the gradient before clipping.
            heldout_loss: held-out loss in nats per token.
        """
        quantities = {
            "loss": loss,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "heldout_loss": heldout_loss,
        }
        row = self.dynamics.log.setdefault(step, {})
        row.update(
            (key, float(value)) for key, value in quantities.items() if value is not None and math.isfinite(value)
        )

    def to_json(self) -> dict[str, Any]:
        """The content of `dynamics.json`."""
        return self.dynamics.to_json()

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write `dynamics.json`; see `Dynamics.save`."""
        return self.dynamics.save(path, force=force)


def _adapted(model: nn.Module, name: str) -> "dict[str, AdaptedModule]":
    """The modules with the adapter."""
    from eckart.nn import adapted_modules

    return {path: module for path, module in adapted_modules(model).items() if name in module.adapters}


def _new_layer(path: str, module: "AdaptedModule", name: str) -> LayerDynamics:
    weight, factors = module.rows(), module.factors(name)
    return LayerDynamics(
        name=path,
        shape=(weight.shape[0], weight.shape[1]),
        rank=factors.rank,
        base_norm=float(torch.linalg.vector_norm(weight, dtype=torch.float64)),
        magnitude_change=None if factors.magnitude is None else [],
    )


def _continued(earlier: Dynamics, fresh: Dynamics) -> Dynamics:
    """The earlier record, to be continued; refused if it belongs to another run."""
    faults = []
    if earlier.directions != fresh.directions:
        faults.append(f"it compares updates with {earlier.directions} directions of the base, not {fresh.directions}")
    before, now = ({layer.name: layer for layer in run.layers} for run in (earlier, fresh))
    faults += [f"{name} is not in this model" for name in before if name not in now]
    faults += [f"{name} is not in the record" for name in now if name not in before]
    for name in before.keys() & now.keys():
        was, is_now = before[name], now[name]
        if (was.shape, was.rank) != (is_now.shape, is_now.rank):
            faults.append(
                f"{name} has shape {was.shape} and rank {was.rank} there, {is_now.shape} and {is_now.rank} here"
            )
        elif not math.isclose(was.base_norm, is_now.base_norm, rel_tol=1e-5):
            faults.append(f"{name} has a base weight of norm {was.base_norm:g} there, {is_now.base_norm:g} here")
        was.base_norm = is_now.base_norm  # the file has seven digits
    if faults:
        msg = "the earlier record belongs to another run"
        raise MismatchError.listing(msg, sorted(faults))
    return earlier


def _find_subspaces(layer: LayerDynamics, module: "AdaptedModule", directions: int) -> tuple[Tensor, Tensor]:
    """Leading singular vectors of a base weight, shapes `(out, k)` and `(in, k)`, float32; records their energy."""
    k = min(directions, *layer.shape)
    svd = truncated_svd(module.rows(), rank=k, generator=torch.Generator().manual_seed(0))
    if layer.base_norm > 0:
        most, least = (1 - float(above[min(k, len(above) - 1)] / above[0]) for above in svd.spectrum.energy_above)
        layer.base_energy = (least, most)
    if layer.outputs is None or layer.inputs is None:
        layer.outputs, layer.inputs = (SideDynamics(k / size) for size in layer.shape)
    return svd.U, svd.Vh.T


def _product(module: "AdaptedModule", name: str) -> Product:
    factors = module.factors(name)
    A, B = factors.stacked()
    return B.flatten(1).to(torch.float64) * factors.scaling, A.flatten(1).to(torch.float64)


def _of_one_shape(products: Mapping[str, Product]) -> list[list[str]]:
    """Paths of the products that can be stacked."""
    groups: dict[object, list[str]] = {}
    for path, (B, A) in products.items():
        groups.setdefault((B.shape, A.shape, B.device), []).append(path)
    return list(groups.values())


def _record_updates(
    layers: Sequence[LayerDynamics], products: Sequence[Product], bases: Sequence[tuple[Tensor, Tensor]] | None
) -> None:
    """Norm, spectrum and alignment of updates of one shape."""
    B, A = (torch.stack(list(sides)) for sides in zip(*products, strict=True))
    finite = B.isfinite().all(2).all(1) & A.isfinite().all(2).all(1)
    B, A = (side.where(finite[:, None, None], 0.0) for side in (B, A))
    U, S, Vh = stacked_svd(B, A)
    S = S.where(rounding_floor(B, A)[:, None] < S, 0.0)
    for layer, values, known in zip(layers, S.cpu(), finite.tolist(), strict=True):
        nonzero = values[values > 0]
        spectrum = Spectrum(nonzero, layer.shape, float(torch.linalg.vector_norm(nonzero)))
        layer.singular_values.append(nonzero.tolist() if known else None)
        layer.norm.append(spectrum.fro_norm if known else None)
        layer.relative_norm.append(spectrum.fro_norm / layer.base_norm if known and layer.base_norm > 0 else None)
        layer.effective_rank.append(spectrum.effective_rank)
        layer.stable_rank.append(cast("float | None", spectrum.stable_rank))  # no interval: the spectrum is complete
    if bases is None:
        return
    # A base weight of zero has no leading directions.
    S = S * torch.tensor([layer.base_norm > 0 for layer in layers], device=S.device)[:, None]
    for side, columns, base in (("outputs", U, 0), ("inputs", Vh.mT, 1)):
        directions = torch.stack([pair[base] for pair in bases]).to(columns.device)
        _record_alignment([getattr(layer, side) for layer in layers], directions, columns, S)


def _record_alignment(sides: Sequence[SideDynamics], base: Tensor, columns: Tensor, S: Tensor) -> None:
    """Record the overlap of singular vectors of updates, shape `(b, n, r)`, with those of base weights, `(b, n, k)`."""
    phi = overlap(base, columns).phi[:, -1]
    # φ(k, j)·min(k, j) sums the squared cosines of the leading j directions to the subspace.
    summed = phi * torch.arange(1, phi.shape[1] + 1, device=phi.device).clamp(max=base.shape[2])
    cosines = torch.diff(summed, prepend=torch.zeros_like(summed[:, :1]))
    shares = (S.square() * cosines).sum(1) / S.square().sum(1)
    counts = (S > 0).sum(1).tolist()
    for side, share, row, count in zip(sides, shares.tolist(), phi.tolist(), counts, strict=True):
        side.share.append(share if count else None)
        side.phi.append([row[2**power - 1] for power in range(count.bit_length())] or None)


def _record_factors(layer: LayerDynamics, module: "AdaptedModule", name: str) -> None:
    """Record norms of the factors, and the distance of DoRA's magnitude from the norms of the base's rows."""
    factors = module.factors(name)
    for column, factor in ((layer.A_norm, factors.lora_A), (layer.B_norm, factors.lora_B)):
        column.append(_finite(torch.linalg.vector_norm(factor, dtype=torch.float64)))
    if factors.magnitude is not None and layer.magnitude_change is not None:
        start = module.squared_norms().sqrt()
        moved = torch.linalg.vector_norm(factors.magnitude.flatten() - start, dtype=torch.float64)
        layer.magnitude_change.append(_finite(moved / torch.linalg.vector_norm(start, dtype=torch.float64)))


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None
