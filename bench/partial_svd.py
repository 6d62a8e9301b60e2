"""The 64 leading singular triplets of a 4096×4096 matrix: `partial_svd` compared with common SVDs."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.matrices import SPECTRA, planted
from bench.options import Options
from bench.reference import spectra, squared_tail
from bench.results import Comparison, Side
from bench.timing import Run, alternate, run_call

RANK = 64
DENSE_RATIO, SKETCH_RATIO = 50.0, 1.5
QUICK_REPEATS = 5
MEASURE = "squared error divided by the optimum's, minus 1"

Triplets = tuple[Tensor, Tensor, Tensor]


def run(options: Options) -> list[Comparison]:
    """Compare on every spectrum; a dense SVD, whose time does not depend on the spectrum, runs once on each."""
    rows = []
    for spectrum in SPECTRA:
        weight = planted(spectrum, options.work)
        exact = spectra({spectrum: lambda weight=weight: weight}, options.work / "planted.pt")
        judge = Judge(weight, squared_tail(exact[spectrum], RANK))
        task = f"partial SVD rank {RANK} of 4096×4096, spectrum {spectrum}"
        quick = {name: _call(function, weight) for name, function in SKETCHES.items()}
        dense = {"eckart": quick["eckart"], DENSE: _call(dense_svd, weight)}
        runs = alternate(quick, repeats=QUICK_REPEATS)
        rows += [_row(task, name, runs, judge) for name in SKETCHES if name != "eckart"]
        rows.append(_row(task, DENSE, alternate(dense, repeats=1), judge))
    return rows


def eckart_svd(weight: Tensor) -> Triplets:
    from eckart.linalg import partial_svd

    result = partial_svd(weight, rank=RANK, generator=torch.Generator().manual_seed(0))
    return result.U, result.S, result.Vh


def torch_sketch(weight: Tensor) -> Triplets:
    U, S, V = torch.svd_lowrank(weight, q=80, niter=2)
    return U[:, :RANK], S[:RANK], V[:, :RANK].T


def peft_sketch(weight: Tensor) -> Triplets:
    """As in PEFT's `init_lora_weights="pissa_niter_4"`."""
    U, S, V = torch.svd_lowrank(weight, q=RANK, niter=4)
    return U, S, V.T


def sklearn_sketch(weight: Tensor) -> Triplets:
    from sklearn.utils.extmath import randomized_svd

    U, S, Vh = randomized_svd(weight.numpy(), n_components=RANK, random_state=0)
    return torch.from_numpy(U), torch.from_numpy(S), torch.from_numpy(Vh)


def dense_svd(weight: Tensor) -> Triplets:
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    return U[:, :RANK], S[:RANK], Vh[:RANK]


DENSE = "torch.linalg.svd, thin"
SKETCHES: dict[str, Callable[[Tensor], Triplets]] = {
    "eckart": eckart_svd,
    "torch.svd_lowrank(q=80, niter=2)": torch_sketch,
    "torch.svd_lowrank(q=64, niter=4), as PEFT's PiSSA": peft_sketch,
    "sklearn randomized_svd": sklearn_sketch,
}


class Judge:
    """Measures how far a factorization is from the best of its rank."""

    def __init__(self, weight: Tensor, optimum: float) -> None:
        self.weight = weight.double()
        self.optimum = optimum

    def excess(self, triplets: Triplets) -> float:
        U, S, Vh = (part.double() for part in triplets)
        return float((self.weight - (U * S) @ Vh).square().sum()) / self.optimum - 1


def _call(function: Callable[[Tensor], Triplets], weight: Tensor) -> Callable[[], Run]:
    return lambda: run_call(lambda: function(weight))


def _row(task: str, peer: str, runs: dict[str, list[Run]], judge: Judge) -> Comparison:
    error, peer_error = (judge.excess(runs[name][-1].value) for name in ("eckart", peer))
    ours, theirs = Side.of(runs["eckart"], error=error), Side.of(runs[peer], error=peer_error)
    ratio = theirs.seconds / ours.seconds
    if peer == DENSE:
        target, met = f"≥ {DENSE_RATIO:g}×", ratio >= DENSE_RATIO
    else:
        target = f"≥ {SKETCH_RATIO:g}× at no larger error, or as fast at a third of it"
        met = (ratio >= SKETCH_RATIO and error <= peer_error) or (ratio >= 1 and error <= peer_error / 3)
    return Comparison(task, peer, ours, theirs, target, met, MEASURE)
