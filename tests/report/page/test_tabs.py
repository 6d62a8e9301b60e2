"""The tabs next to the ranks: trainings, sweeps, adapters, comparisons and merge checks, each as its numbers say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from eckart.operations import Analysis, analyze
from eckart.report.page import Results, write_page
from eckart.training.sweep_result import Sweep, SweepCell
from eckart.training.trajectory import Dynamics, LayerDynamics

from .waiting import until

STEPS = [0, 1, 2, 4]
KINDS = ("q_proj", "v_proj")


def trained() -> tuple[dict, Dynamics]:
    """A training of four layers whose updates grow with the steps."""

    def layer(i: int, kind: str) -> LayerDynamics:
        values = [[], [1.0 + i, 0.5], [2.0 + i, 1.0], [4.0 + i, 2.0]]
        norms = [sum(value**2 for value in row) ** 0.5 for row in values]
        columns = {"A_norm": [1.0] * 4, "B_norm": norms, "norm": norms, "relative_norm": [norm / 100 for norm in norms]}
        ranks = [None, 1.5, 1.5, 1.5]
        return LayerDynamics(
            f"layers.{i}.{kind}", (8, 8), 3, 100.0, **columns, effective_rank=ranks, stable_rank=ranks,
            singular_values=values,
        )  # fmt: skip

    dynamics = Dynamics("base", 0, {step: {"loss": 3 - step / 4} for step in STEPS[1:]}, list(STEPS))
    dynamics.log[4]["heldout_loss"] = 2.5
    dynamics.layers = [layer(i, kind) for i in range(2) for kind in KINDS]
    told = {"trainable_params": 48_000, "total_params": 1_000_000, "steps": 4, "seconds": 9.0, "peak_bytes": 2 * 10**9}
    losses = {"heldout_loss_before": 3.25, "heldout_loss_after": 2.5, "heldout_tokens": 1234}
    return told | losses | {"run": {"model": "base"}, "losses": {"step": [1], "loss": [3.0]}}, dynamics


def swept() -> dict:
    losses = {("attention", 4): 2.6, ("attention", 16): 2.5, ("all-linear", 4): 2.505}
    cells = [
        SweepCell(rank, target, seed, loss + 0.01 * (seed - 1), rank * (10_000 if target == "attention" else 30_000),
                  10.0 + seed, 10**9 * (1 + seed))
        for seed in range(3)
        for (target, rank), loss in losses.items()
    ]  # fmt: skip
    return Sweep({"model": "base"}, cells, 2.75, 32_768, 100.0).to_json()


def extracted(rank: int, gain: float) -> dict:
    layers = [
        {
            "name": f"layers.{i}.{kind}",
            "shape": [8, 8],
            "rank": rank,
            "error": 0.9 - rank / 20,
            "error_lower_bound": 0.1,
        }
        for i in range(2)
        for kind in KINDS
    ]
    loss = {"base_loss": 3.0, "tuned_loss": 2.0, "adapter_loss": 3.0 - gain, "gain_recovered": gain}
    sizes = {"params": 64 * rank, "bytes": 256 * rank, "error": 0.9 - rank / 20, "error_lower_bound": 0.1}
    return {"layers": layers, "eval": loss, "distill": None, **sizes}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every tab."""
    generator = torch.Generator().manual_seed(0)
    names = [f"layers.{i}.{kind}.weight" for i in range(2) for kind in KINDS]
    one = analyze({name: torch.randn(24, 16, generator=generator) for name in names})
    other = analyze({name: 2 * torch.ones(24, 16) for name in names})
    results = Results(
        analyses={"first": one, "second": replace(other, source="other")},
        trainings={"run": trained()},
        sweeps={"sweep": swept()},
        extractions={"small": extracted(1, 0.5), "large": extracted(4, 0.75)},
    )
    return write_page(results, tmp_path_factory.mktemp("everything") / "report.html")


@pytest.fixture
def tab(opened: Callable[..., Page], everything: Path) -> Callable[..., Page]:
    """Opens the page at a tab."""

    def open_tab(name: str, **options) -> Page:
        page = opened(everything, **options)
        page.get_by_role("tab", name=name).click()
        page.locator("[role=tabpanel]:not([hidden]) .js-plotly-plot .main-svg").first.wait_for(timeout=20_000)
        return page

    return open_tab


def panel(page: Page):
    return page.locator("[role=tabpanel]:not([hidden])")


def drawn(page: Page, place: int = 0) -> list[dict]:
    chart = panel(page).locator(".js-plotly-plot").nth(place)
    return chart.evaluate("(node) => node.data.map(({ name, x, y }) => ({ name, x: [...x], y: [...y] }))")


def test_a_training_plays_its_spectra_step_by_step(tab: Callable[..., Page]) -> None:
    page = tab("Training")
    expect(panel(page).locator("h2.finding")).to_have_text("Held-out loss fell from 3.2500 to 2.5000")
    assert drawn(page)[0] == {"name": "each step", "x": [1, 2, 4], "y": [2.75, 2.5, 2.0]}
    growth = drawn(page, 1)
    assert [line["name"] for line in growth] == list(KINDS)
    assert growth[0]["x"] == STEPS
    assert growth[0]["y"][0] == 0
    page.locator("[data-frames]").fill("1")
    expect(page.locator("[data-frames]")).to_have_attribute("aria-valuetext", "step 1")
    until(page, lambda: drawn(page, 2)[1]["y"] == [1.0, 0.5, 0.0])
    expect(panel(page).get_by_role("gridcell", name="q_proj, layer 0")).to_have_attribute(
        "aria-label", "q_proj, layer 0: ‖ΔW‖ / ‖W‖ 1.12%"
    )
    panel(page).get_by_role("button", name="Play").click()
    expect(page.locator("[data-frames]")).to_have_attribute("aria-valuetext", "step 4")
    expect(panel(page).get_by_role("button", name="Play")).to_be_visible()
    panel(page).get_by_role("gridcell", name="v_proj, layer 1").click()
    until(page, lambda: drawn(page, 2)[1]["y"] == [5.0, 2.0, 0.0])


def test_a_sweep_marks_its_sweet_spot(tab: Callable[..., Page]) -> None:
    page = tab("Sweep")
    expect(panel(page).locator("h2.finding")).to_have_text("Sweet spot: rank 4 on all-linear")
    lines = {line["name"]: line for line in drawn(page)}
    assert lines["attention"]["x"] == [40_000, 160_000]
    assert lines["attention"]["y"] == pytest.approx([2.6, 2.5])
    row = panel(page).locator("tbody tr").filter(has_text="all-linear").inner_text().split("\t")
    assert row == ["all-linear", "4", "120 k", "2.5050 ± 0.0058", "3", "11 s", "3 GB"]


def test_gain_recovered_is_drawn_over_the_rank(tab: Callable[..., Page]) -> None:
    page = tab("Adapters")
    expect(panel(page).locator("h2.finding")).to_have_text("large recovers 75% of the gain with 256 parameters")
    assert drawn(page)[0] == {"name": "gain recovered", "x": [1, 4], "y": [0.5, 0.75]}
    panel(page).locator("tbody").get_by_role("button", name="large").click()
    expect(panel(page).locator(".map-cell").first).to_have_attribute(
        "aria-label", "layers.0.q_proj, 8×8: relative error 70%"
    )


CURVE = [(1, 0.4), (2, 0.8), (3, 0.96), (8, 0.99)]


def by_gain(source: str) -> dict:
    """An extraction at the rank that keeps 95 % of the gain, with the ranks that were measured."""
    curve = [
        {"rank": rank, "params": 64 * rank, "loss": 3 - gain, "gain_recovered": gain,
         "interval": {"lower": gain - 0.1, "upper": gain + 0.05}}
        for rank, gain in CURVE
    ]  # fmt: skip
    gain = {"keep": 0.95, "metric": "loss", "shared": False, "rank": 3, "reached": True, "distilled": False}
    return extracted(3, 0.96) | {"gain": gain | {"candidates": 8, "curve": curve, "base": "base", "source": source}}


def of_update() -> Analysis:
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.{kind}.weight": torch.randn(8, 8, generator=generator) for i in range(2) for kind in KINDS}
    tuned = {name: weight + 0.1 * torch.randn(8, 8, generator=generator) for name, weight in base.items()}
    return replace(analyze(tuned, base), source="tuned", base="base")


@pytest.fixture(scope="module")
def with_curve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of an update, and of an adapter whose rank its gain chose."""
    results = Results(analyses={"update": of_update()}, extractions={"chosen": by_gain("tuned")})
    return write_page(results, tmp_path_factory.mktemp("curve") / "report.html")


def test_a_gain_curve_is_drawn_with_its_intervals(opened: Callable[..., Page], with_curve: Path) -> None:
    page = opened(with_curve)
    page.get_by_role("tab", name="Adapters").click()
    panel(page).locator(".js-plotly-plot .main-svg").first.wait_for(timeout=20_000)
    expect(panel(page)).to_contain_text("Rank 3 keeps 96% of the gain; 95% was asked for.")
    asked, measured, written = drawn(page)
    assert asked["y"] == [0.95, 0.95]
    assert (measured["x"], measured["y"]) == tuple(map(list, zip(*CURVE, strict=True)))
    assert (written["x"], written["y"]) == ([3], [0.96])
    bars = (
        panel(page)
        .locator(".js-plotly-plot")
        .evaluate("({ data }) => [data[1].error_y.array, data[1].error_y.arrayminus]")
    )
    assert bars == [pytest.approx([0.05] * 4), pytest.approx([0.1] * 4)]
    rows = [row.split("\t") for row in panel(page).locator("tbody").last.locator("tr").all_inner_texts()]
    assert rows[2] == ["3", "192", "2.0400", "96%", "86% to 101%"]


def test_ranks_are_chosen_by_the_measured_gain_and_above_the_noise(
    opened: Callable[..., Page], with_curve: Path
) -> None:
    page = opened(with_curve)
    page.get_by_role("radio", name="Gain").check()
    expect(page.locator("[data-slider-value]")).to_have_text("96% at rank 3")
    expect(page.locator("[data-command]")).to_have_text(
        "eckart extract base tuned -o adapter-gain-0.95 --gain 0.95 --eval TEXT"
    )
    expect(panel(page).locator("[data-total=ranks]")).to_have_text("3")
    page.locator("[data-slider]").fill("3")
    expect(page.locator(".controls")).to_contain_text("The rank below it was not measured")
    page.get_by_role("checkbox", name="v_proj").uncheck()
    expect(page.locator(".totals")).to_contain_text("measured with more modules than are taken here")
    page.get_by_role("radio", name="Above noise").check()
    expect(page.locator("[data-slider]")).to_be_hidden()
    expect(page.locator("[data-command]")).to_contain_text("-o adapter-noise --rank noise --target q_proj")


def test_two_analyses_are_compared_matrix_by_matrix(tab: Callable[..., Page]) -> None:
    page = tab("Comparison")
    page.get_by_label("Compare", exact=True).select_option("stable")
    expect(panel(page).locator("h2.finding")).to_contain_text("the stable rank of first, median over 4 matrices")
    page.get_by_label("Compare", exact=True).select_option("norm")
    norms = panel(page).locator("tbody tr").first.locator("td").all_inner_texts()
    assert norms[3] == "39.2"  # ‖2·1‖ of 24 × 16
    assert norms[4] == "1"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["Comparison", "Adapters", "Training", "Sweep"])
def test_no_tab_keeps_readers_out_or_runs_out_of_the_page(tab: Callable[..., Page], name: str, width: int) -> None:
    page = tab(name, viewport={"width": width, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
