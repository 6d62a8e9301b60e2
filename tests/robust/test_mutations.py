"""A damaged file is refused with an EckartError or read right; `make fuzz` tries 10,000 within limits."""

import collections
import os
import random
import shutil
import signal
import traceback
from pathlib import Path

import pytest

from .mutations import KINDS, damage, outcome

FEW, MANY = 40, 1250  # inputs of each kind
SECONDS, BYTES = 20, 2 * 2**30  # of one input


@pytest.fixture(scope="module", params=KINDS)
def original(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "in"
    KINDS[request.param][0](folder)
    return request.param, folder


def test_an_undamaged_file_is_accepted_and_right(original):
    assert outcome(*original) == "accepted"


def test_a_damaged_file_is_refused_or_read_right(original, tmp_path, request):
    kind, folder = original
    many = request.config.getoption("--fuzz")
    counts, faults = collections.Counter(), []
    for seed in range(MANY if many else FEW):
        damaged = tmp_path / str(seed)
        shutil.copytree(folder, damaged)
        damage(damaged, random.Random(f"{kind} {seed}"))
        result = limited(kind, damaged) if many else outcome(kind, damaged)
        counts[result.partition(":")[0]] += 1
        if result not in ("accepted", "refused"):
            faults.append(f"{kind} {seed}: {result}")
        shutil.rmtree(damaged)
    print(f"\n{kind}: {dict(counts)}")
    assert not faults, "\n".join(faults[:20])
    assert counts["refused"] > counts.total() // 10


def limited(kind: str, folder: Path) -> str:
    """The outcome in a process of its own, with limits on its memory and time."""
    import resource

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            os.write(writer, outcome(kind, folder).encode())
        except BaseException:
            os.write(writer, f"fault: {traceback.format_exc()[-1500:]}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return result or f"fault: ended by {signal.Signals(os.WTERMSIG(status)).name}"
