"""Merging an adapter into a checkpoint far larger than memory: peak memory, and time compared with copying the files.

Takes minutes and 32 GB of disk, so it runs only when named.
"""

import os
import shutil
import statistics
import time

import torch

from bench.memory import LAYER_BYTES, PEAK_GB, write_pair
from bench.options import Options, script
from bench.resize import write_adapter
from bench.results import Limit
from bench.timing import run_process

GIGABYTES = 16
COPIES = 2.0  # times as long as copying the files
COPY = shutil.which("cp") or "cp"


def run(options: Options) -> list[Limit]:
    """Medians of alternating runs. A merge ends when its output is on disk, a copy when it is synced."""
    folder, adapter = options.work / "synthetic-merge", options.work / "llama-adapter"
    try:
        layers = round(GIGABYTES * 1e9 / LAYER_BYTES)
        write_pair(folder, layers, ["base"])
        write_adapter(adapter, torch.bfloat16)
        copied, synced, merged, peak = [], [], [], 0
        for _ in range(options.repeats):
            started = time.perf_counter()
            copied.append(run_process(COPY, "-r", folder / "base", folder / "copy").seconds)
            os.sync()
            synced.append(time.perf_counter() - started)
            shutil.rmtree(folder / "copy")
            os.sync()
            done = run_process(script("eckart"), "merge", folder / "base", adapter, "-o", folder / "merged")
            merged.append(done.seconds)
            peak = max(peak, done.peak_rss_bytes or 0)
            shutil.rmtree(folder / "merged")
            os.sync()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(adapter, ignore_errors=True)
    seconds, copying, durably = (statistics.median(each) for each in (merged, copied, synced))
    note = f"merging {seconds:.0f} s, cp -r {durably:.0f} s until it is on disk, {copying:.0f} s until cp returns"
    return [
        Limit(f"peak memory of merge into {GIGABYTES} GB", peak / 1e9, PEAK_GB, "GB", f"{seconds:.0f} s"),
        Limit("time of merge compared with copying the files to disk", seconds / durably, COPIES, "×", note),
    ]
