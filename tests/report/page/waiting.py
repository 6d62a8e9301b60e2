"""Waiting for a page without scripts of our own in it, which its policy forbids."""

import time
from collections.abc import Callable

from playwright.sync_api import Page

LONGEST_SECONDS = 20


def until(page: Page, holds: Callable[[], bool]) -> None:
    """Returns once something holds; fails where it does not in time."""
    last = time.monotonic() + LONGEST_SECONDS
    while not holds():
        assert time.monotonic() < last, "it did not come to hold"
        page.wait_for_timeout(50)
