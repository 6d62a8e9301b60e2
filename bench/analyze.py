"""The spectra of all matrices of SmolLM2-135M, whole process: WeightWatcher beside `eckart analyze --full`."""

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
from bench.results import Comparison
from bench.timing import alternate, median_seconds, peak_rss_bytes, run_process

RATIO = 6.0
PEER = Path(__file__).with_name("peer_weightwatcher.py")


@dataclass(frozen=True)
class Statistics:
    """What both tools report of a matrix."""

    spectral_norm: float
    stable_rank: float


def run(options: Options) -> list[Comparison]:
    base, _ = get_pair(options.pair)
    table = options.work / "weightwatcher.csv"

    def eckart():
        return run_process(script("eckart"), "analyze", base, "--full", "--json")

    def weightwatcher():
        return run_process(sys.executable, PEER, base, table)

    eckart()  # compiled modules and the checkpoint are in the page cache from here on
    runs = alternate({"weightwatcher": weightwatcher, "eckart": eckart}, repeats=options.repeats)
    ours, theirs = of_eckart(runs["eckart"][-1].value), of_weightwatcher(table)
    common = sorted(ours.keys() & theirs.keys())
    weights = readers(base)
    cache = options.work / f"weights-{fingerprint(base)}.npz"
    exact = spectra({name: weights[f"{name}.weight"] for name in common}, cache)
    seconds, peer_seconds = median_seconds(runs["eckart"]), median_seconds(runs["weightwatcher"])
    return [
        Comparison(
            task="all spectra of SmolLM2-135M, whole process",
            peer="WeightWatcher.analyze()",
            seconds=seconds,
            peer_seconds=peer_seconds,
            target=f"≥ {RATIO:g}×",
            met=peer_seconds / seconds >= RATIO,
            measure="largest relative error of a spectral norm or stable rank",
            error=worst_error(ours, exact, common),
            peer_error=worst_error(theirs, exact, common),
            peak_rss_bytes=peak_rss_bytes(runs["eckart"]),
            peer_peak_rss_bytes=peak_rss_bytes(runs["weightwatcher"]),
            note=f"{len(common)} matrices compared (WeightWatcher read {len(theirs)}, eckart {len(ours)}); "
            "WeightWatcher also fits a power law to each spectrum, eckart also counts ranks and noise",
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


def worst_error(found: Mapping[str, Statistics], exact: Mapping[str, Tensor], names: list[str]) -> float:
    errors = []
    for name in names:
        squares = exact[name].square()
        norm, stable_rank = float(squares[0]) ** 0.5, float(squares.sum() / squares[0])
        errors.append(abs(found[name].spectral_norm / norm - 1))
        errors.append(abs(found[name].stable_rank / stable_rank - 1))
    return max(errors)
