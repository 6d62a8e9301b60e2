"""Extraction over HTTP compared with the disk: time, and bytes read compared with those of the matrices.

Takes minutes and 4 GB of disk, so it runs only when named.
"""

import os
import shutil
import statistics

from bench.memory import LAYER_BYTES, RANK, write_pair
from bench.options import Options, script
from bench.range_server import bytes_sent, serving
from bench.results import Limit
from bench.timing import run_process

GIGABYTES = 2  # of each of the two checkpoints
BYTES_READ = 1.02  # times those of the matrices
SLOWDOWN = 1.3


def run(options: Options) -> list[Limit]:
    """Medians of alternating runs, with the files in the page cache: the server and the disk then cost the least."""
    folder, output = options.work / "synthetic-remote", options.work / "remote-adapter"
    layers = round(GIGABYTES * 1e9 / LAYER_BYTES)
    needed = 2 * layers * LAYER_BYTES
    seconds: dict[str, list[float]] = {"disk": [], "remote": []}
    sent = []
    try:
        write_pair(folder, layers)
        os.sync()
        with serving(folder) as address:
            for _ in range(options.repeats):
                for name, place in (("disk", folder), ("remote", address)):
                    shutil.rmtree(output, ignore_errors=True)
                    sides = f"{place}/base", f"{place}/tuned"
                    done = run_process(script("eckart"), "extract", *sides, "-o", output, "--rank", str(RANK))
                    seconds[name].append(done.seconds)
                sent.append(bytes_sent(address))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(output, ignore_errors=True)
    disk, remote = (statistics.median(seconds[name]) for name in ("disk", "remote"))
    task = f"extract rank {RANK} from {needed / 1e9:.1f} GB over HTTP"
    note = f"{remote:.1f} s, from disk {disk:.1f} s, whole process"
    return [
        Limit(f"bytes read by {task}, compared with the matrices", max(sent) / needed, BYTES_READ, "×"),
        Limit(f"time of {task}, compared with the disk", remote / disk, SLOWDOWN, "×", note),
    ]
