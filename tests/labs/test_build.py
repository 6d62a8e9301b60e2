"""The built page: solutions folded, no network, and pictures whose sliders tell what Python computes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

LABS = Path(__file__).parents[2] / "labs"
BUILD = (
    "from pathlib import Path; import build; Path({page!r}).write_text(build.page(build.executed(Path({lab!r})), []))"
)
TINY = """
# %% [markdown]
# # A tiny lab

# %%
import numpy as np

import eckart
from eckart.report.figures import style
from labkit import check, packed, picture, show

W = np.random.default_rng(0).standard_normal((6, 5))
U, S, Vt = np.linalg.svd(W, full_matrices=False)
figure = style.new_figure()
figure.subplots().plot(S)
show(figure, "Five <singular> values")
errors = eckart.spectrum(W).errors().tolist()
size = {"rows": 6, "columns": 5, "left": packed((U * S).T), "right": packed(Vt)}
matrix = {"name": "six by five", "start": 2, "values": S.tolist(), "errors": errors, **size}
picture("rank_slider", [matrix], alt="ranks")
picture("rotate_stretch_rotate", {"v": 30, "u": -45, "s1": 1.5, "s2": 0.5, "patch": [[0, 1], [1, 0]]}, alt="steps")

# %% tags=["solution"]
check("the answer", 42, 42)
"""


def build(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a lab of this text to `folder/page.html`."""
    (folder / "lab.py").write_text(text, encoding="utf-8")
    code = BUILD.format(page=str(folder / "page.html"), lab=str(folder / "lab.py"))
    command = [sys.executable, "-X", "utf8", "-c", code]
    return subprocess.run(command, cwd=LABS, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    ended = build(TINY, folder)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return folder / "page.html"


@pytest.fixture(scope="module")
def page(browser, page_file):
    """The page in the system's Chromium, from disk, offline; the console must stay silent."""
    said = []
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 900})
    opened = context.new_page()
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(page_file.as_uri())
    yield opened
    context.close()
    assert said == []


def test_a_page_asks_no_network(page_file):
    assert re.findall(r"(?:src|href)=[\"']?https?:|@import|url\(", page_file.read_text(encoding="utf-8")) == []


def test_a_solution_is_folded_and_was_checked(page):
    solution = page.locator("details.solution")
    assert not solution.get_attribute("open")
    assert "the answer: 42" in solution.text_content()


def test_a_figure_has_words_for_readers_who_hear_the_page(page):
    assert page.locator("img.figure").get_attribute("alt") == "Five <singular> values"


def test_a_narrow_page_does_not_scroll_sideways(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_rank_slider_shows_the_error_and_the_numbers_that_python_computes(page):
    frame = page.frame_locator("iframe[title=ranks]")
    S = np.linalg.svd(np.random.default_rng(0).standard_normal((6, 5)), compute_uv=False)
    for rank in (1, 3, 4):
        frame.locator("#rank").fill(str(rank))
        error = 100 * np.sqrt((S[rank:] ** 2).sum() / (S**2).sum())
        told = frame.locator("#numbers").text_content()
        assert f"= {error:.2f} %" in told
        assert f"= {rank * 12} instead of 30" in told


def test_the_angles_and_stretches_make_the_matrix_that_python_makes(page):
    frame = page.frame_locator("iframe[title=steps]")
    for name, value in {"v": 20, "u": 75, "s1": 2, "s2": 0}.items():
        frame.locator(f"#{name}").fill(str(value))
    v, u = np.radians([20, 75])
    W = 2 * np.outer([np.cos(u), np.sin(u)], [np.cos(v), np.sin(v)])
    told = frame.locator("#matrix").text_content()
    assert "[{:.2f}, {:.2f}; {:.2f}, {:.2f}]".format(*W.ravel()) in told
    assert "rank 1" in told


def test_a_frame_is_as_high_as_its_picture(page):
    for frame in page.frames[1:]:
        inside = frame.evaluate("document.body.getBoundingClientRect().height")
        assert 0 <= frame.frame_element().bounding_box()["height"] - inside < 8


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("from labkit import check\ncheck('rank', 571, 570)", "computed 571, but the lesson says 570"),
        ("import warnings\nwarnings.warn('careless')", "careless"),
    ],
    ids=["number", "warning"],
)
def test_a_changed_number_or_a_warning_ends_the_build(cell, message, tmp_path):
    ended = build(f"# %%\n{cell}\n", tmp_path)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert not (tmp_path / "page.html").exists()
