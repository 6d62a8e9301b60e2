"""One analysis on a Ray cluster of one node, and of two: all nodes have one core of this machine.

Takes minutes, so it runs only when named.
"""

import hashlib
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.options import Options, script
from bench.results import Limit
from bench.timing import run_process

MATRICES, SIDE = 48, 2560
STORE_BYTES = 80 * 2**20
SHARE = 0.6  # of one node's time that two take
LEAST_SECONDS = 60.0  # of one node's work


def run(options: Options) -> list[Limit]:
    """Medians of alternating whole processes, after one on each cluster that starts its workers."""
    folder = options.work / "cluster"
    shutil.rmtree(folder, ignore_errors=True)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    digests = set()
    try:
        _write_pair(folder)
        for _ in range(options.repeats):
            for nodes, times in seconds.items():
                with _cluster(nodes) as address:
                    for output in ("warm", "timed"):
                        target = ["--target", r"layers\.0\.q_proj"] if output == "warm" else []
                        done = run_process(
                            script("eckart"), "analyze", folder / "tuned", "--base", folder / "base", "--ray", address,
                            "-o", folder / output, *target,
                        )  # fmt: skip
                    times.append(done.seconds)
                digests.add(hashlib.sha256((folder / "timed" / "analysis.csv").read_bytes()).hexdigest())
                shutil.rmtree(folder / "warm")
                shutil.rmtree(folder / "timed")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    one, two = (statistics.median(times) for times in seconds.values())
    long_enough = "" if one >= LEAST_SECONDS else f"; too little work: less than {LEAST_SECONDS:.0f} s"
    note = f"one node {one:.1f} s, two {two:.1f} s{long_enough}"
    return [
        Limit("time of two nodes relative to one, whole process", two / one, SHARE, "×", note),
        Limit("different results of all runs", len(digests), 1, "", "analysis.csv"),
    ]


@contextmanager
def _cluster(nodes: int) -> Iterator[str]:
    """The address of a cluster whose head does no work."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        assert cluster.address
        yield cluster.address
    finally:
        cluster.shutdown()


def _write_pair(folder: Path) -> None:
    """A model of square matrices in bfloat16, and the same with a random change of every entry."""
    generator = torch.Generator().manual_seed(0)
    base = {
        f"layers.{i}.q_proj.weight": torch.randn(SIDE, SIDE, generator=generator).bfloat16() for i in range(MATRICES)
    }
    tuned = {name: weight + 0.1 * torch.randn(SIDE, SIDE, generator=generator) for name, weight in base.items()}
    for name, weights in (("base", base), ("tuned", {name: weight.bfloat16() for name, weight in tuned.items()})):
        (folder / name).mkdir(parents=True)
        save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
