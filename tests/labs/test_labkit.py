"""What the labs share: numbers that stop a lab where they change, and a page that keeps what it is given."""

import subprocess
import sys
from pathlib import Path

import pytest

LABS = Path(__file__).parents[2] / "labs"


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code beside the labs."""
    command = [sys.executable, "-X", "utf8", "-W", "error", "-c", code]
    return subprocess.run(command, cwd=LABS, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("'rank', 570, 570", "✓ rank: 570"),
        ("'parameters', 16777216, 16777216", "✓ parameters: 16,777,216"),
        ("'share of noise', 0.0797, 0.08, 0.001", "✓ share of noise: 0.0797"),
        ("'the rank is proved', True, True", "✓ the rank is proved: yes"),
    ],
    ids=["count", "thousands", "within", "truth"],
)
def test_a_number_that_holds_is_printed(arguments, line):
    assert python(f"from labkit import check; check({arguments})").stdout.strip() == line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'rank', 571, 570", "rank: computed 571, but the lesson says 570"),
        ("'share', 0.0821, 0.08, 0.001", "share: computed 0.0821, but the lesson says 0.08 ± 0.001"),
        ("'loss', float('nan'), 0.8, 0.1", "loss: computed nan, but the lesson says 0.8 ± 0.1"),
    ],
    ids=["count", "within", "nan"],
)
def test_a_number_that_changed_stops_the_lab(arguments, message):
    ended = python(f"from labkit import check; check({arguments})")
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith(f"AssertionError: {message}")
