"""What a reader sees at first sight: nothing overlaps, nothing refuses silently, nothing is cut without a word."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page, expect

from eckart.adapter import Adapter, AdapterLayer
from eckart.nn import LoRAConfig
from eckart.operations import analyze
from eckart.operations.comparison.compare import compare
from eckart.operations.comparison.merge_check import MergeCheck, MergedMatrix
from eckart.report.figures.training import loss_figure
from eckart.report.page import Results, read_results, write_page
from eckart.report.page.training import SETTINGS, settings_of
from eckart.training import DataOptions, TrainSettings
from eckart.training.trajectory import Dynamics, LayerDynamics

KINDS = ("q_proj", "k_proj", "v_proj")
LAYERS, STEPS = 30, [0, 1, 2, 4, 8, 16]
EVIL = "<img src=x onerror=alert(1)>"


def update():
    generator = torch.Generator().manual_seed(0)
    base = {
        f"layers.{i}.{kind}.weight": torch.randn(48, 32, generator=generator) for i in range(LAYERS) for kind in KINDS
    }
    directions = torch.diag(torch.arange(1, 9) ** -0.7)
    tuned = {
        name: weight
        + 0.1 * torch.randn(48, 8, generator=generator) @ directions @ torch.randn(8, 32, generator=generator)
        for name, weight in base.items()
    }
    return analyze(tuned, base)


def dynamics() -> Dynamics:
    def layer(i: int, kind: str) -> LayerDynamics:
        values = [[(1 + i) * step * 1e-4] if step else [] for step in STEPS]
        norms = [sum(row) for row in values]
        ranks = [None, *(1.0 for _ in STEPS[1:])]
        columns = {"A_norm": norms, "B_norm": norms, "norm": norms, "relative_norm": norms}
        return LayerDynamics(
            f"layers.{i}.{kind}",
            (8, 8),
            1,
            1.0,
            **columns,
            effective_rank=ranks,
            stable_rank=ranks,
            singular_values=values,
        )

    log = {
        step: {"loss": 3 - step / 40, "learning_rate": 1e-3 / step, "gradient_norm": 10 / step} for step in range(1, 41)
    }
    recorded = Dynamics("base", 0, log, list(STEPS))
    recorded.layers = [layer(i, kind) for i in range(LAYERS) for kind in KINDS]
    return recorded


def trained() -> dict:
    sizes = {"trainable_params": 48_000, "total_params": 1_000_000, "steps": 40, "seconds": 9.0, "peak_bytes": 10**9}
    losses = {"heldout_loss_before": 3.25, "heldout_loss_after": 2.5, "heldout_tokens": 1234}
    settings = {"learning_rate": 2e-4, "schedule": "cosine", "batch_size": 4, "gradient_checkpointing": False}
    run = {"model": "base", "config": {"rank": 8, "target": ["q_proj", EVIL]}, "settings": settings}
    return sizes | losses | {"run": run, "losses": {"step": [1], "loss": [3.0]}}


def adapter(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        {
            f"layers.{i}.{kind}": AdapterLayer(
                torch.randn(4, 32, generator=generator), torch.randn(48, 4, generator=generator), 8.0
            )
            for i in range(3)
            for kind in KINDS
        }
    )


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    results = Results(analyses={"update": update()}, trainings={"run": (trained(), dynamics())})
    return write_page(results, folder / "report.html")


@pytest.fixture
def page(opened: Callable[..., Page], page_file: Path) -> Page:
    return opened(page_file)


def chart(page: Page, place: int = 0):
    node = page.locator("[role=tabpanel]:not([hidden]) .js-plotly-plot").nth(place)
    node.locator(".main-svg").first.wait_for(timeout=20_000)
    return node


TITLE_CLEARANCE = """(node) => {
    const title = node.querySelector(".ytitle").getBoundingClientRect();
    const labels = [...node.querySelectorAll(".yaxislayer-above .ytick text, .ytick text")];
    return [labels.length, Math.min(...labels.map((label) => label.getBoundingClientRect().left - title.right))];
}"""
COVERED = """(node) => {
    const boxes = [...node.querySelectorAll(".annotation-text")].map((text) => text.getBoundingClientRect());
    const hits = [];
    for (const line of node.querySelectorAll(".scatterlayer .js-line")) {
        const matrix = line.getScreenCTM();
        for (let at = 0; at <= line.getTotalLength(); at += 1) {
            const point = line.getPointAtLength(at).matrixTransform(matrix);
            boxes.forEach((box, i) => {
                const [across, down] = [point.x - box.left, point.y - box.top];
                if (across > 0 && across < box.width && down > 0 && down < box.height) hits.push(i);
            });
        }
    }
    return [boxes.length, hits.length];
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_the_title_of_an_axis_stands_clear_of_its_numbers(
    opened: Callable[..., Page], page_file: Path, width: int
) -> None:
    page = opened(page_file, viewport={"width": width, "height": 900})
    page.get_by_role("tab", name="Training").click()
    growth = chart(page, 3)
    growth.locator(".ytitle").wait_for(timeout=20_000)
    count, clearance = growth.evaluate(TITLE_CLEARANCE)
    assert count > 3
    assert clearance > 0


def test_no_label_of_a_spectrum_is_crossed_by_a_curve(page: Page) -> None:
    for mode, stop in (("Energy", 89), ("Rank", 3), ("Rank", 20)):
        page.get_by_label(mode, exact=True).check(force=True)
        page.locator("[data-slider]").fill(str(stop))
        page.wait_for_timeout(300)
        for place in (0, 1):
            labels, hits = chart(page, place).evaluate(COVERED)
            assert labels >= 2
            assert hits == 0, (mode, stop, place)


def test_the_ticks_of_a_logarithmic_axis_are_powers_of_ten_in_one_size(page: Page) -> None:
    values = chart(page)
    texts = values.locator(".ytick text").all_inner_texts()
    sizes = values.evaluate(
        "(node) => [...node.querySelectorAll('.ytick text')].map((text) => getComputedStyle(text).fontSize)"
    )
    assert len(texts) >= 2
    assert len(set(sizes)) == 1
    assert not {"2", "5"} & set(texts)


def test_an_update_is_called_so_in_the_formula_of_its_error(page: Page) -> None:
    expect(page.locator(".tiles").first).to_contain_text("‖ΔW − ΔWᵣ‖ / ‖ΔW‖")


def test_a_cell_shows_its_label_while_it_is_pointed_at(page: Page) -> None:
    cell = page.locator(".map-cell").first
    cell.hover()
    expect(page.locator(".tip")).to_be_visible()
    expect(page.locator(".tip")).to_have_text(cell.get_attribute("aria-label") or "missing")
    page.locator("h1").hover()
    expect(page.locator(".tip")).to_be_hidden()


def test_the_last_kind_of_module_stays_chosen_and_the_page_says_why(page: Page) -> None:
    for kind in KINDS[1:]:
        page.get_by_label(kind, exact=True).uncheck()
    last = page.get_by_label("q_proj", exact=True)
    expect(last).to_be_checked()
    expect(last).to_be_disabled()
    expect(page.get_by_text("An adapter needs at least one kind of module.")).to_be_visible()
    page.get_by_label("k_proj", exact=True).check()
    expect(last).to_be_enabled()
    expect(page.get_by_text("An adapter needs at least one kind of module.")).to_be_hidden()


def test_a_filter_that_matches_nothing_says_so_and_is_cleared_by_a_click(page: Page) -> None:
    page.get_by_role("searchbox").fill(EVIL)
    expect(page.locator("tbody")).to_contain_text(f"No matrices match “{EVIL}”.")
    page.get_by_role("button", name="Clear the filter").click()
    expect(page.locator("tbody tr")).to_have_count(LAYERS * len(KINDS))


def test_the_map_first_shows_the_ranks_that_the_headline_speaks_of(page: Page) -> None:
    expect(page.get_by_label("Energy", exact=True)).to_be_checked()
    expect(page.locator("[data-slider-value]")).to_have_text("90%")
    needed = update().matrices[0].spectrum.rank_for_energy(0.9)
    expect(page.locator(".map-cell").first).to_have_text(str(needed))


def test_every_kind_has_its_ranks_and_share_next_to_the_totals(page: Page) -> None:
    lines = page.locator(".shares li")
    expect(lines).to_have_count(len(KINDS))
    shares = [float(text.split(", ")[1].split("%")[0]) for text in lines.all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=1)


def test_a_narrow_page_shows_the_map_uncut_and_says_that_tables_scroll(
    opened: Callable[..., Page], page_file: Path
) -> None:
    page = opened(page_file, viewport={"width": 390, "height": 800})
    chart(page)
    map_box = page.locator(".map-scroll").first
    assert map_box.evaluate("(node) => node.scrollHeight <= node.clientHeight + 1")
    expect(page.get_by_text("Scroll sideways for more, down for more rows.")).to_be_visible()


def test_a_training_shows_its_settings_learning_rate_and_gradient_norm(page: Page) -> None:
    page.get_by_role("tab", name="Training").click()
    settings = page.get_by_role("region", name="Settings")
    rows = dict(zip(settings.locator("dt").all_inner_texts(), settings.locator("dd").all_inner_texts(), strict=True))
    assert rows == {
        "Rank": "8",
        "Target modules": f"q_proj, {EVIL}",
        "Learning rate": "0.0002",
        "Schedule": "cosine",
        "Batch size": "4",
        "Gradient checkpointing": "no",
    }
    rates, norms = (chart(page, place).evaluate("(node) => [...node.data[0].y]") for place in (1, 2))
    assert rates == [1e-3 / step for step in range(1, 41)]
    assert norms == [10 / step for step in range(1, 41)]


def test_every_setting_of_a_training_has_a_name_on_the_page() -> None:
    named = {field.name for kind in (LoRAConfig, TrainSettings) for field in fields(kind)}
    assert named == set(SETTINGS)
    of_data = {field.name for field in fields(DataOptions)} - {"seed"}  # that of the settings
    shown = settings_of({"options": dict.fromkeys(of_data, 1)}, {"source": "text.txt"})
    assert len(shown["data"]) == len(of_data) + 1
    separate = settings_of({"options": {"held_out": 0.1}}, {"heldout_source": "held.txt"})
    assert separate["data"] == [["Held-out source", "held.txt"]]


def test_the_page_smooths_the_loss_like_the_figure(page: Page) -> None:
    page.get_by_role("tab", name="Training").click()
    smooth = chart(page).evaluate("(node) => ({ name: node.data[1].name, y: [...node.data[1].y] })")
    line = loss_figure(dynamics()).axes[0].get_lines()[1]
    assert line.get_label() == f"training, {smooth['name']}"
    assert smooth["y"] == pytest.approx(list(line.get_ydata()))


def test_a_step_without_any_update_says_so(page: Page) -> None:
    page.get_by_role("tab", name="Training").click()
    page.get_by_label("Show").select_option("effective_rank")
    page.locator("[data-frames]").fill("0")
    expect(page.get_by_text("Every update is zero after step 0: lora_B starts at zero.")).to_be_visible()
    page.locator("[data-frames]").fill("2")
    expect(page.get_by_text("Every update is zero")).to_be_hidden()


def test_comparisons_are_shown_from_their_folders(opened: Callable[..., Page], tmp_path: Path) -> None:
    compared = compare(adapter(1), adapter(2))
    matrix = MergedMatrix(f"layers.0.{EVIL}", (4, 4), equal=True, ulps=0.5, error=1e-8, lowest=0.999, highest=1.001)
    check = MergeCheck("merged", "base", ["lora"], [1.0], [matrix], ["norm"], [], [], 3, 0.1)
    for name, result in ("two", compared), ("check", check):
        (tmp_path / name).mkdir()
        (tmp_path / name / "comparison.json").write_text(json.dumps(result.to_json()))
    results = read_results([tmp_path / "two", tmp_path / "check"])
    results.analyses["update"] = update()
    page = opened(write_page(results, tmp_path / "report.html"))
    page.get_by_role("tab", name="A and B").click()
    panel = page.locator("[role=tabpanel]:not([hidden])")
    expect(panel.locator("h2.finding")).to_have_text(f"Cosine over all matrices: {compared.cosine:.3g}")
    expect(panel.locator("tbody tr")).to_have_count(9)
    first = compared.matrices[0]
    cells = panel.locator("tbody tr").first.locator("td").all_inner_texts()
    assert cells[3] == f"{first.cosine:.3g}"
    assert cells[4] == f"{first.outputs.shared:.3g}"
    panel.get_by_label("Colour").select_option("inputs")
    expect(panel.locator(".map-cell").first).to_have_attribute(
        "aria-label", f"q_proj, layer 0: φ of inputs {first.inputs.shared:.3g}"
    )
    page.get_by_role("tab", name="Merge check").click()
    panel = page.locator("[role=tabpanel]:not([hidden])")
    expect(panel.locator("h2.finding")).to_have_text("merged is not base + lora.")
    expect(panel.locator("tbody th")).to_have_text(f"layers.0.{EVIL}")
    expect(panel).to_contain_text("Changed, but no adapter covers them")
    assert page.locator("img").count() == 0
