"""Shares of one command's matrices, done by several processes: the same bytes as from one, whatever happens to them."""

import shutil
import signal

import pytest

from .commands import digests
from .harness import DONE, content

SHARED = [
    "analyze",
    "analyze adapter",
    "extract",
    "extract budget",
    "resize",
    "resize file",
    "combine",
    "merge",
    "unmerge",
    "quantize",
]
RUNNING = "another process is writing"
EARLY = 9  # changes of files: a few matrices are done


@pytest.mark.parametrize("name", SHARED)
def test_four_shares_of_which_one_is_killed_give_the_same_bytes(name, harness) -> None:
    reference, place = harness.reference(name), harness.place(name)
    before = digests(place.work)
    status, log = harness.run(place, "--shard", "2/4", at=EARLY, number=signal.SIGKILL)
    assert status == -signal.SIGKILL, log
    for share in ("4/4", "2/4", "1/4", "3/4", "1/4"):
        status, log = harness.run(place, "--shard", share)
        assert status == 0, log
        assert f"Share {share} is done" in log
        assert not place.output.exists()
    status, log = harness.run(place)
    assert status in DONE, log
    assert content(place.output, place.work) == reference.content
    assert digests(place.work).items() >= before.items()
    assert place.left() == []
    shutil.rmtree(place.folder)


@pytest.mark.parametrize("name", ["analyze", "extract budget", "quantize"])
def test_collecting_names_the_shares_that_are_missing_and_computes_nothing(name, harness) -> None:
    reference, place = harness.reference(name), harness.place(name)
    status, log = harness.run(place, "--collect")
    assert (status, "no share has begun" in log) == (1, True), log
    assert place.left() == []
    assert harness.run(place, "--shard", "1/2")[0] == 0
    if name != "extract budget":  # whose spectra, which are all it has so far, every share needs
        before = digests(place.work)
        status, log = harness.run(place, "--collect")
        assert (status, "not done; run the shares 2/2 first" in log) == (1, True), log
        assert digests(place.work) == before
    assert harness.run(place, "--shard", "2/2")[0] == 0
    status, log = harness.run(place, "--collect")
    assert status in DONE, log
    assert content(place.output, place.work) == reference.content
    assert place.left() == []


@pytest.mark.parametrize("name", ["analyze", "merge"])
def test_shares_work_at_the_same_time_and_nobody_finishes_before_they_do(name, harness) -> None:
    reference, alone, place = harness.reference(name), harness.place(name), harness.place(name)
    assert harness.run(alone, "--shard", "1/2")[0] == 0
    events = int((alone.folder / f"log{harness.runs}.events").read_text())
    stopped, _ = harness.run(place, "--shard", "1/2", at=events - 3, number=signal.SIGSTOP)  # in its last matrices
    paused = place.folder / f"log{harness.runs}"
    assert stopped.startswith("stopped")
    for options, reason in (((), RUNNING), (("--shard", "1/2"), RUNNING)):
        status, log = harness.run(place, *options)
        assert (status, reason in log) == (1, True), log
    status, log = harness.run(place, "--shard", "2/2")
    assert status == 0, log
    status, log = harness.resume(stopped, paused)
    assert status == 0, log
    status, log = harness.run(place)
    assert status in DONE, log
    assert content(place.output, place.work) == reference.content
    assert place.left() == []


def test_a_share_of_another_run_is_refused_and_keeps_what_is_there(harness) -> None:
    place = harness.place("resize")
    assert harness.run(place, "--shard", "1/2")[0] == 0
    before = digests(place.work)
    status, log = harness.run(place, "--shard", "2/2", "--dtype", "float16")
    assert status == 1, log
    assert "with other options" in log
    assert digests(place.work).items() >= before.items()


@pytest.mark.parametrize("share", ["5/4", "0/2", "1", "1/0", "a/b", "-1/2", "1/2/3", "¹/2"])
def test_what_is_no_share_is_refused_with_its_form(share, harness) -> None:
    status, log = harness.run(harness.place("resize"), "--shard", share)
    assert status == 2, log
    assert "such as 1/4" in log


def test_a_share_resumes(harness) -> None:
    status, log = harness.run(harness.place("resize"), "--shard", "1/2", "--no-resume")
    assert status == 1, log
    assert "delete the .partial folder" in log
