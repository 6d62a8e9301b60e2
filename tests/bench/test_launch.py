"""The benchmark's launcher: what it writes down belongs to the command alone."""

import json
import subprocess
import sys
from pathlib import Path

LAUNCHER = Path(__file__).parents[2] / "bench" / "launch.py"
MEGABYTE = 2**20


def launch(record: Path, *command: str) -> dict[str, float]:
    subprocess.run([sys.executable, "-I", "-S", LAUNCHER, record, *command], check=True)
    return json.loads(record.read_text())


def test_the_memory_of_the_starting_process_is_not_counted(tmp_path):
    held = bytearray(300 * MEGABYTE)
    held[::4096] = b"x" * len(held[::4096])
    measured = launch(tmp_path / "record.json", sys.executable, "-I", "-S", "-c", "pass")
    assert measured["peak_rss_bytes"] < 100 * MEGABYTE


def test_the_memory_of_the_command_is_counted(tmp_path):
    command = f"held = b'x' * {200 * MEGABYTE}"
    measured = launch(tmp_path / "record.json", sys.executable, "-I", "-S", "-c", command)
    assert 200 * MEGABYTE < measured["peak_rss_bytes"] < 300 * MEGABYTE


def test_waiting_is_wall_time_and_not_processor_time(tmp_path):
    measured = launch(tmp_path / "record.json", sys.executable, "-I", "-S", "-c", "import time; time.sleep(0.5)")
    assert measured["seconds"] > 0.5
    assert measured["cpu_seconds"] < 0.4


def test_a_failing_command_leaves_its_exit_status(tmp_path):
    measured = launch(tmp_path / "record.json", sys.executable, "-I", "-S", "-c", "raise SystemExit(3)")
    assert measured["exit_code"] == 3
