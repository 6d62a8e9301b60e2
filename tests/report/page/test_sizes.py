"""The page stays small however large the model, and a thinned spectrum says so and keeps its exact ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page

from eckart.linalg import Spectrum
from eckart.linalg.scaling import shifted
from eckart.operations import Analysis, MatrixAnalysis, analyze
from eckart.report.page import Results, write_page

from .expected import choosable, expected

MOST_BYTES = 8_000_000
SHAPES = {
    "self_attn.q_proj": (8192, 8192),
    "self_attn.k_proj": (1024, 8192),
    "self_attn.v_proj": (1024, 8192),
    "self_attn.o_proj": (8192, 8192),
    "mlp.gate_proj": (28672, 8192),
    "mlp.up_proj": (28672, 8192),
    "mlp.down_proj": (8192, 28672),
}


@pytest.fixture(scope="module")
def of_70b() -> Analysis:
    """Llama-70B's shapes, every singular value of every matrix: power laws of many exponents."""
    generator = torch.Generator().manual_seed(0)

    def matrix(layer: int, kind: str, shape: tuple[int, int]) -> MatrixAnalysis:
        exponent = 0.2 + 0.8 * float(torch.rand((), generator=generator))
        ranks = torch.arange(1, min(shape) + 1, dtype=torch.float64)
        noise = 1 + 0.1 * torch.rand(len(ranks), generator=generator, dtype=torch.float64)
        values = (noise * ranks**-exponent).sort(descending=True).values
        return MatrixAnalysis(
            f"model.layers.{layer}.{kind}", shape, "bfloat16", Spectrum(values, shape, float(values.norm()))
        )

    matrices = [matrix(layer, kind, shape) for layer in range(80) for kind, shape in SHAPES.items()]
    return Analysis("delta", "org/tuned-70b", "org/base-70b", matrices)


@pytest.fixture(scope="module")
def page_of_70b(of_70b: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(Results({"70b": of_70b}), tmp_path_factory.mktemp("70b") / "report.html")


def test_pages_stay_under_8_megabytes(smollm2_page: Path, page_of_70b: Path) -> None:
    assert smollm2_page.stat().st_size < MOST_BYTES
    assert page_of_70b.stat().st_size < MOST_BYTES


def test_a_70b_page_says_that_it_is_thinned_and_is_exact_all_the_same(
    opened: Callable[..., Page], page_of_70b: Path, of_70b: Analysis
) -> None:
    page, kinds = opened(page_of_70b), choosable(of_70b)
    assert "thinned: it holds their leading" in page.locator(".intro").inner_text()

    def shown(way: str, place: int) -> tuple[str, float, float]:
        page.get_by_label(way, exact=True).check(force=True)
        page.locator("[data-slider]").fill(str(place))
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        numbers = [page.locator(f"[data-total={name}]").get_attribute("data-value") for name in ("params", "error")]
        words = page.locator("[data-slider-value]").inner_text()
        return words.replace(" ", ""), float(numbers[0] or "nan"), float(numbers[1] or "nan")

    for way, place, value in (("Energy", 89, 0.9), ("Error", 69, 0.3), ("Rank", 15, 16)):
        right = expected(of_70b, way.lower(), value, kinds)
        assert shown(way, place)[1:] == (right.params, right.error)
    words, params, error = shown("Budget", 10_000)  # the largest that is certain
    right = expected(of_70b, "budget", words, kinds)
    assert (params, error) == (right.params, right.error)
    assert "could rank among them" not in page.locator(".totals").inner_text()


@pytest.mark.parametrize("exponent", [-800, 900])
def test_values_whose_squares_have_no_room_are_shown_in_units_of_a_power_of_two(
    opened: Callable[..., Page], tmp_path: Path, exponent: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    plain, found = (analyze({"m.q_proj.weight": shifted(weight, k)}) for k in (0, exponent))
    page = opened(write_page(Results({"large": found}), tmp_path / "report.html"))
    assert "in units of 2^" in page.locator(".intro").inner_text()
    page.get_by_label("Energy", exact=True).check(force=True)
    page.locator("[data-slider]").fill("89")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    error = float(page.locator("[data-total=error]").get_attribute("data-value") or "nan")
    assert error == pytest.approx(expected(plain, "energy", 0.9, choosable(plain)).error, rel=1e-12)
