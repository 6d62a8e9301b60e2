"""The page in a browser, from disk and offline: what a reader sees, clicks, copies and takes away."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from eckart.adapter import Adapter, AdapterLayer
from eckart.cli.main import app
from eckart.formats import load_adapter
from eckart.operations import Analysis, analyze
from eckart.report.page import Results, write_page
from eckart.report.page.stops import ENERGIES

from .expected import choosable, expected
from .waiting import until

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def pair(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """MiniLM, and the same with an update of falling singular values in its attention."""
    folder = tmp_path_factory.mktemp("pair") / "it's tuned"  # a name that a shell must be told of
    folder.mkdir()
    weights, generator = load_file(minilm / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in weights:
        if name.endswith(("query.weight", "value.weight")):
            left, right = (torch.randn(384, 32, generator=generator) for _ in range(2))
            weights[name] += 1e-4 * left @ torch.diag(torch.arange(1, 33) ** -0.7) @ right.T
    save_file(weights, folder / "model.safetensors")
    return minilm, folder


@pytest.fixture(scope="module")
def update(pair: tuple[Path, Path]) -> Analysis:
    return analyze(str(pair[1]), str(pair[0]), target=["query", "value"])


@pytest.fixture(scope="module")
def update_page(update: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(Results({"update": update}), tmp_path_factory.mktemp("page") / "report.html")


def total(page: Page, name: str) -> float:
    return float(page.locator(f"[data-total={name}]").get_attribute("data-value") or "nan")


def rows(page: Page) -> Locator:
    """Of the table of matrices."""
    return page.locator("tbody tr")


def slide(page: Page, way: str, place: int) -> None:
    """Choose the way, and drag the slider to a stop."""
    page.get_by_label(way, exact=True).check(force=True)
    page.locator("[data-slider]").fill(str(place))
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_the_slider_of_smollm2_shows_what_the_library_computes(
    opened: Open, smollm2_page: Path, of_smollm2: Analysis
) -> None:
    page, kinds = opened(smollm2_page), choosable(of_smollm2)
    for place in (49, 89, 99):
        slide(page, "Energy", place)
        right = expected(of_smollm2, "energy", ENERGIES[place], kinds)
        assert (total(page, "params"), total(page, "error")) == (right.params, right.error)
        assert total(page, "bytes") == 4 * right.params
        assert f"{right.params:,}" in page.locator(".tiles").inner_text()
    slide(page, "Budget", 60)
    words = page.locator("[data-slider-value]").inner_text().replace(" ", "")
    right = expected(of_smollm2, "budget", words, kinds)
    assert (total(page, "params"), total(page, "error")) == (right.params, right.error)
    page.get_by_label("k_proj", exact=True).uncheck()
    page.get_by_label("Factors in").select_option("bfloat16")
    slide(page, "Budget", 40)
    words = page.locator("[data-slider-value]").inner_text().replace(" ", "")
    right = expected(of_smollm2, "budget", words, [kind for kind in kinds if kind != "k_proj"], item_bytes=2)
    assert (total(page, "params"), total(page, "error")) == (right.params, right.error)


def test_a_cell_shows_the_spectrum_of_its_matrix(opened: Open, smollm2_page: Path, of_smollm2: Analysis) -> None:
    page = opened(smollm2_page)
    page.get_by_role("gridcell", name=re.compile("^o_proj, layer 7:")).click()
    name = "model.layers.7.self_attn.o_proj"
    expect(page.locator(".spectrum h3")).to_have_text(name)
    chart = page.locator(".spectrum .js-plotly-plot").first
    chart.wait_for(timeout=20_000)
    drawn = chart.evaluate("(node) => Array.from(node.data[0].y)")
    matrix = next(matrix for matrix in of_smollm2.matrices if matrix.name == name)
    assert drawn == matrix.spectrum.singular_values.tolist()
    assert chart.evaluate("(node) => node.layout.yaxis.type") == "log"
    page.get_by_role("group", name="Values").get_by_label("linear").check(force=True)
    until(page, lambda: chart.evaluate("(node) => node.layout.yaxis.type") == "linear")
    facts = page.locator(".facts").inner_text()
    assert str(matrix.spectrum.rank_for_energy(0.9)) in facts


def test_the_map_is_walked_with_the_arrow_keys(opened: Open, update_page: Path) -> None:
    page = opened(update_page)
    page.locator(".map-cell[tabindex='0']").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    expect(page.locator(".spectrum h3")).to_have_text("encoder.layer.2.attention.self.value")
    page.keyboard.press("End")
    expect(page.locator(".spectrum h3")).to_have_text("encoder.layer.5.attention.self.value")
    page.set_viewport_size({"width": 390, "height": 800})  # the map is turned: layers go down
    page.keyboard.press("ArrowUp")
    expect(page.locator(".spectrum h3")).to_have_text("encoder.layer.4.attention.self.value")
    assert page.locator(".map-cell[aria-selected=true]").count() == 1


def run_copied(page: Page, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Copies the command and runs it in a folder, as words that a POSIX shell makes of it; its JSON."""
    page.get_by_role("button", name="Copy command").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("[data-command]").inner_text()
    program, *words = shlex.split(copied)
    assert program == "eckart"
    monkeypatch.chdir(folder)
    ended = CliRunner().invoke(app, [*words, "--json"])
    assert ended.exit_code == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("choice", [("Rank", 3), ("Energy", 79), ("Budget", 70)], ids=lambda choice: choice[0])
def test_the_command_as_copied_makes_what_the_page_says(
    opened: Open,
    update_page: Path,
    update: Analysis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    choice: tuple[str, int],
) -> None:
    page = opened(update_page)
    slide(page, *choice)
    made = run_copied(page, tmp_path, monkeypatch)
    assert made["params"] == total(page, "params")
    assert made["error"] == pytest.approx(total(page, "error"), abs=1e-3)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (folder / "report.html").is_file()
    shown = {row.locator("th").inner_text(): row.locator("td").nth(-2).inner_text() for row in rows(page).all()}
    ranks = {name: str(layer.rank) for name, layer in load_adapter(folder).items()}
    assert shown == {matrix.name: ranks.get(matrix.name, "0") for matrix in update.matrices}


def test_an_adapter_is_resized_to_what_its_page_says(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def layer(rank: int) -> AdapterLayer:
        return AdapterLayer(torch.randn(rank, 40), torch.randn(30, rank), alpha=rank)

    Adapter({f"layers.{i}.q_proj": layer(4 + i) for i in range(4)}).save(tmp_path / "adapter")
    analysis = analyze(str(tmp_path / "adapter"))
    for way, place in (("Energy", 69), ("Budget", 30)):
        page = opened(write_page(Results({"adapter": analysis}), tmp_path / "page.html", force=True))
        slide(page, way, place)
        made = run_copied(page, tmp_path, monkeypatch)
        assert made["format"] == "eckart-resize/2"
        assert made["params"] == total(page, "params")
        assert made["error"] == pytest.approx(total(page, "error"), rel=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_rank_pattern_is_what_peft_gives_those_ranks(
    opened: Open, update_page: Path, minilm: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModel

    page = opened(update_page)
    slide(page, "Budget", 70)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download rank_pattern").click()
    assert download.value.suggested_filename == "rank_pattern.json"
    download.value.save_as(tmp_path / "ranks.json")
    config = LoraConfig(**json.loads((tmp_path / "ranks.json").read_text()))
    model = get_peft_model(AutoModel.from_pretrained(minilm), config)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == total(page, "params")
    assert len(config.rank_pattern) > 1
    assert {layer.scaling["default"] for layer in model.modules() if isinstance(layer, LoraLayer)} == {1.0}


def test_the_table_is_sorted_and_filtered(opened: Open, smollm2_page: Path, of_smollm2: Analysis) -> None:
    page = opened(smollm2_page)
    expect(page.locator("tbody tr")).to_have_count(len(of_smollm2.matrices))
    page.get_by_role("button", name="Norm").click()
    expect(page.locator("th[aria-sort=descending]")).to_have_text(re.compile("Norm"))
    largest = max(of_smollm2.matrices, key=lambda matrix: matrix.spectrum.fro_norm)
    expect(page.locator("tbody th").first).to_have_text(largest.name)
    page.get_by_role("button", name="Norm").click()
    smallest = min(of_smollm2.matrices, key=lambda matrix: matrix.spectrum.fro_norm)
    expect(page.locator("tbody th").first).to_have_text(smallest.name)
    page.get_by_role("searchbox").fill("layers.3. proj v_")
    expect(page.locator("tbody th")).to_have_text(["model.layers.3.self_attn.v_proj"])
    expect(page.locator(".table-head [role=status]")).to_have_text(f"1 of {len(of_smollm2.matrices)} matrices")
    page.locator("tbody button").click()
    expect(page.locator(".spectrum h3")).to_have_text("model.layers.3.self_attn.v_proj")


def test_the_theme_is_the_systems_until_it_is_chosen(opened: Open, update_page: Path) -> None:
    page = opened(update_page, color_scheme="dark")

    def paper() -> list[int]:
        return [
            int(part) for part in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
        ]

    assert max(paper()) < 60
    cell = page.locator(".map-cell").first
    dark = cell.evaluate("(node) => node.style.backgroundColor")
    page.get_by_label("light").check(force=True)
    assert min(paper()) > 200
    assert cell.evaluate("(node) => node.style.backgroundColor") != dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_keeps_readers_out_and_nothing_runs_out_of_the_page(
    opened: Open, update_page: Path, width: int, scheme: str
) -> None:
    page = opened(update_page, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.locator(".spectrum .js-plotly-plot .main-svg").first.wait_for(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert faults(page) == []


def faults(page: Page) -> list[str]:
    """What axe-core finds of serious or critical impact."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in ("serious", "critical")
    ]


def test_names_from_files_stay_text(opened: Open, tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>.<!--.{{7*7}}.q_proj"
    weights = {f"layers.{i}.{evil}.weight": torch.randn(12, 8) for i in range(2)}
    analysis = analyze(weights | {"<b>bold</b>.weight": torch.randn(9, 9)})
    html = write_page(Results({"</title><script>alert(2)</script>": analysis}), tmp_path / "report.html")
    page = opened(html)
    page.on("dialog", lambda dialog: pytest.fail(f"a name ran as a script: {dialog.message}"))
    names = page.locator("tbody th").all_inner_texts()
    assert f"layers.0.{evil}" in names
    for cell in page.locator(".map-cell").all():
        cell.click()
    page.locator(".spectrum .js-plotly-plot .main-svg").first.wait_for(timeout=20_000)
    assert page.locator("img").count() == 0
    assert page.locator("b").count() == 0
    assert page.title().startswith("</title><script>alert(2)</script>")
    assert html.read_text().count("<script") == 4


@pytest.mark.parametrize("weight", [torch.randn(9, 9), torch.zeros(9, 9)], ids=["random", "zero"])
def test_an_analysis_of_nothing_that_an_adapter_takes_still_opens(
    opened: Open, tmp_path: Path, weight: torch.Tensor
) -> None:
    analysis = replace(analyze({"embed_tokens.weight": weight}), kind="delta", source="tuned", base="base")
    page = opened(write_page(Results({"nothing": analysis}), tmp_path / "report.html"))
    expect(page.locator(".command")).to_contain_text("None of these matrices can become factors")
    assert total(page, "params") == 0
    slide(page, "Rank", 0)
    assert total(page, "params") == 0


def test_a_printed_page_shows_every_row_in_dark_ink_and_no_buttons(opened: Open, update_page: Path) -> None:
    page = opened(update_page, color_scheme="dark")
    chart = page.locator(".spectrum .js-plotly-plot").first
    chart.locator(".main-svg").first.wait_for(timeout=20_000)
    ink = "(node) => parseInt(node._fullLayout.font.color.slice(1, 3), 16)"
    assert chart.evaluate(ink) > 200
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    until(page, lambda: chart.evaluate(ink) < 60)
    assert page.get_by_role("button", name="Copy command").count() == 0
    assert page.locator(".scroll").evaluate("(node) => node.scrollHeight <= node.clientHeight + 1")
    expect(page.locator("[data-command]")).to_be_visible()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    until(page, lambda: chart.evaluate(ink) > 200)
