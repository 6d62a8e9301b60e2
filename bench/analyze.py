"""The spectra of all matrices of SmolLM2-135M, whole process: WeightWatcher and `eckart analyze --full`."""

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bench.files import fingerprint, readers
from bench.options import Options, script
from bench.pair import get_pair
from bench.reference import spectra
from bench.results import Comparison, Side
from bench.timing import Run, alternate, run_process

RATIO = 6.0
PEER = Path(__file__).with_name("peer_weightwatcher.py")


@dataclass(frozen=True)
class Statistics:
    """Statistics that both tools report for a matrix."""

    spectral_norm: float
    stable_rank: float


def run(options: Options) -> list[Comparison]:
    base, _ = get_pair(options.pair)
    table = options.work / "weightwatcher.csv"

    def eckart() -> Run:
        return run_process(script("eckart"), "analyze", base, "--full", "--json")

    def weightwatcher() -> Run:
        return run_process(sys.executable, PEER, base, table)

    eckart()  # fills the page cache with compiled modules and the checkpoint
    runs = alternate({"weightwatcher": weightwatcher, "eckart": eckart}, repeats=options.repeats)
    reported = {"eckart": of_eckart(runs["eckart"][-1].value), "weightwatcher": of_weightwatcher(table)}
    common = sorted(reported["eckart"].keys() & reported["weightwatcher"].keys())
    weights = readers(base)
    exact = spectra(
        {name: weights[f"{name}.weight"] for name in common}, options.work / f"weights-{fingerprint(base)}.pt"
    )
    ours, theirs = (
        Side.of(runs[name], error=worst_error(reported[name], exact)) for name in ("eckart", "weightwatcher")
    )
    return [
        Comparison(
            task="all spectra of SmolLM2-135M, whole process",
            peer="WeightWatcher.analyze()",
            ours=ours,
            theirs=theirs,
            target=f"≥ {RATIO:g}×",
            met=theirs.seconds >= RATIO * ours.seconds,
            measure="largest relative error of a spectral norm or stable rank",
            note=f"{len(common)} matrices compared (WeightWatcher read {len(reported['weightwatcher'])}, "
            f"eckart {len(reported['eckart'])}); WeightWatcher also fits a power law to each spectrum, "
            "eckart also counts ranks and noise",
        )
    ]


def of_eckart(output: str) -> dict[str, Statistics]:
    matrices = json.loads(output)["matrices"]
    return {entry["name"]: Statistics(entry["spectral_norm"], entry["stable_rank"]) for entry in matrices}


def of_weightwatcher(table: Path) -> dict[str, Statistics]:
    """WeightWatcher's spectral norm is the largest eigenvalue of WᵀW."""
    with table.open() as file:
        rows = list(csv.DictReader(file))
    return {row["longname"]: Statistics(float(row["spectral_norm"]) ** 0.5, float(row["stable_rank"])) for row in rows}


def worst_error(reported: Mapping[str, Statistics], exact: Mapping[str, Tensor]) -> float:
    """The largest relative error of a statistic, over the matrices with a reference spectrum."""
    errors = []
    for name, singular_values in exact.items():
        squares = singular_values.square()
        truth = Statistics(float(squares[0]) ** 0.5, float(squares.sum() / squares[0]))
        errors.append(abs(reported[name].spectral_norm / truth.spectral_norm - 1))
        errors.append(abs(reported[name].stable_rank / truth.stable_rank - 1))
    return max(errors)
