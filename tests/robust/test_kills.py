"""A command that is killed at any moment changes no input, and repeating it gives the same bytes and leaves nothing."""

import random
import shutil
import signal

import pytest

from .commands import COMMANDS, digests
from .harness import DONE, content

MOMENTS, MANY_MOMENTS = 5, 50  # of each signal
INTERRUPTED = 130
PARTS = ("out", "out.safetensors", "out.html", "out.gguf", "out.png", "out.calibration", "out.correction")
KEPT = {f"{part}.partial" for part in PARTS} | {"out.correction"}  # what repeating the command continues with
TRAINING = {"train", "sweep", "demo"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("name", COMMANDS)
def test_repeating_a_killed_command_gives_the_same_bytes(name, number, harness, request) -> None:
    reference = harness.reference(name)
    count = MANY_MOMENTS if request.config.getoption("--fuzz") else MOMENTS
    moments = random.Random(f"{name} {number}").sample(range(1, reference.events + 1), min(count, reference.events))
    assert moments
    for at in moments:
        place = harness.place(name)
        before = digests(place.work)
        status, log = harness.run(place, at=at, number=number)
        where = f"{name}, {number.name} at change {at} of {reference.events}: status {status}\n{log}"
        assert not any(word in log for word in ("Traceback", "unexpected", "ignored")), where
        if number == signal.SIGKILL:
            assert status == -signal.SIGKILL, where
        else:
            # A training that is asked to stop in its last step is complete.
            assert status == INTERRUPTED or (status == 0 and COMMANDS[name].name in TRAINING), where
            assert status == INTERRUPTED or content(place.output, place.work) == reference.content, where
            assert all(entry in KEPT for entry in place.left()), (where, place.left())
            assert ("kept in" in log or "a checkpoint is in" in log) == bool(place.left()) or COMMANDS[
                name
            ].continues, where
        status, repeated = harness.repeat(place)
        assert status in DONE, f"{where}\nrepeated: {repeated}"
        assert content(place.output, place.work) == reference.content, where
        assert digests(place.work).items() >= before.items(), where
        assert place.left() == [], where
        shutil.rmtree(place.folder)
