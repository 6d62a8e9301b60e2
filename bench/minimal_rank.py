"""The smallest rank within 1 % of a 768×768 matrix: `minimal_rank` compared with rebuilding it at every rank."""

from collections.abc import Callable

import numpy as np

from bench.options import Options
from bench.results import Comparison, Side
from bench.timing import alternate, run_call

SIZE, TRUE_RANK, NOISE, ERROR = 768, 64, 0.01, 0.01
ANSWER = 570
SWEEP_RATIO = 150.0
QUICK_REPEATS = 20

Rank = Callable[[np.ndarray], int]


def run(options: Options) -> list[Comparison]:
    weight = weight_like()
    task = f"rank for {ERROR:.0%} error, {SIZE}×{SIZE}"
    peers = {
        "rebuild at every rank, U @ diag(S) @ Vh": (SWEEP_RATIO, rebuild_with_diagonals, options.repeats),
        "rebuild at every rank, (U * S) @ Vh": (1.0, rebuild_with_columns, options.repeats),
        "numpy svdvals and tail sums": (1.0, tail_sums, QUICK_REPEATS),
    }
    return [
        _row(task, peer, least_ratio, weight, function, repeats=repeats)
        for peer, (least_ratio, function, repeats) in peers.items()
    ]


def weight_like() -> np.ndarray:
    """True rank 64, entries of about 1/8, and noise of 0.01: 8 % of the norm."""
    draw = np.random.RandomState(42).randn
    A, B = draw(SIZE, TRUE_RANK), draw(TRUE_RANK, SIZE)
    return A @ B / TRUE_RANK + NOISE * draw(SIZE, SIZE)


def eckart_rank(weight: np.ndarray) -> int:
    import eckart

    bound = eckart.minimal_rank(weight, error=ERROR)
    assert bound.is_exact
    return bound.upper


def rebuild_with_diagonals(weight: np.ndarray) -> int:
    """One SVD, then the matrix of each rank as textbooks write it, and the norm of the residual."""
    return _rebuild(weight, lambda U, S, Vh: U @ np.diag(S) @ Vh)


def rebuild_with_columns(weight: np.ndarray) -> int:
    """The same with one product per rank."""
    return _rebuild(weight, lambda U, S, Vh: (U * S) @ Vh)


def _rebuild(weight: np.ndarray, product: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> int:
    U, S, Vh = np.linalg.svd(weight, full_matrices=False)
    norm = np.linalg.norm(weight)
    errors = [np.linalg.norm(weight - product(U[:, :r], S[:r], Vh[:r])) / norm for r in range(1, len(S) + 1)]
    return 1 + next(index for index, error in enumerate(errors) if error < ERROR)


def tail_sums(weight: np.ndarray) -> int:
    """The error at rank r from the remaining singular values, summed from the smallest up."""
    S = np.linalg.svdvals(weight)
    tails = np.sqrt(np.cumsum(np.square(S)[::-1])[::-1])
    return int(np.count_nonzero(tails >= ERROR * np.linalg.norm(weight)))


def _row(task: str, peer: str, least_ratio: float, weight: np.ndarray, function: Rank, *, repeats: int) -> Comparison:
    functions = {"peer": function, "eckart": eckart_rank}
    sides = {name: lambda rank=rank: run_call(lambda: rank(weight)) for name, rank in functions.items()}
    sides["eckart"]()  # imports
    runs = alternate(sides, repeats=repeats)
    ours, theirs = Side.of(runs["eckart"]), Side.of(runs["peer"])
    answer, peer_answer = (runs[name][-1].value for name in ("eckart", "peer"))
    return Comparison(
        task,
        peer,
        ours,
        theirs,
        target=f"≥ {least_ratio:g}×, same answer",
        met=theirs.seconds >= least_ratio * ours.seconds and answer == peer_answer == ANSWER,
        note=f"answers: peer {peer_answer}, eckart {answer}",
    )
