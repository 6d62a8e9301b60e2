"""Every storage is counted once, from its birth to its end."""

import torch

from eckart.planning.storages import StorageLog


def test_a_storage_counts_until_its_last_view_is_gone():
    with StorageLog() as log:
        values = torch.zeros(1000)
        part = values[10:20].view(2, 5)
        assert log.alive_bytes == 4000
        del values
        assert log.alive_bytes == 4000
        del part
        assert log.alive_bytes == 0
    assert log.peak_bytes == 4000


def test_the_highest_moment_is_found():
    with StorageLog() as log:
        a = torch.zeros(100)
        b = a + 1
        del a
        c = torch.zeros(50)
    assert (log.peak_bytes, log.alive_bytes) == (800, 600)
    assert [life.nbytes for life in log.lives if life.is_alive(log.peak_at)] == [400, 400]
    del b, c


def test_what_autograd_keeps_is_alive_without_a_name():
    x = torch.ones(1000, requires_grad=True)
    with StorageLog() as log:
        y = (x * 2).exp().sum()  # exp keeps what it gave
        assert log.alive_bytes >= 4000
        y.backward()
    assert log.peak_bytes >= 8000


def test_bytes_are_rounded_up_to_what_an_allocator_hands_out():
    with StorageLog(granularity=512) as log:
        kept = torch.zeros(3), torch.zeros(0), torch.zeros(129)
    assert [life.nbytes for life in log.lives] == [512, 0, 1024]
    del kept


def test_a_storage_that_is_resized_is_another_piece_of_memory():
    with StorageLog() as log:
        out = torch.empty(0)
        torch.add(torch.ones(100), 1, out=out)
        assert log.alive_bytes == 400
    assert out.shape == (100,)


def test_a_restart_forgets_what_was_higher():
    with StorageLog() as log:
        large = torch.zeros(1000)
        del large
        log.restart()
        small = torch.zeros(10)
    assert log.peak_bytes == small.nbytes
