"""The rules that run in the browser choose as the library does, to the last bit."""

from dataclasses import replace

import pytest
import torch
from playwright.sync_api import Browser

from eckart.adapter import Adapter, AdapterLayer
from eckart.linalg import allocate, partial_spectrum
from eckart.operations import Analysis, MatrixAnalysis, analyze
from eckart.report.page import bundle
from eckart.report.page.analysis import analysis_data
from eckart.report.page.extraction import gain_stops, is_of
from eckart.report.page.numbers import Numbers
from eckart.report.page.spectra import _ranks_at_stops
from eckart.report.page.stops import ENERGIES, ERRORS

from .expected import choosable, expected

READY = """
const { Chooser } = modules.choice;
const { Spectrum } = modules.spectrum;
globalThis.rules = (analysis, numbers) => {
  const block = new Float64Array(numbers);
  const chooser = new Chooser(analysis, analysis.matrices.map((m) => new Spectrum(m.spectrum, m.shape, block)));
  const kinds = (names) => new Set(names.map((name) => analysis.kinds.indexOf(name)));
  return {
    choose: (mode, value, names, dtype) => chooser.choose({
      mode, value, kinds: kinds(names), dtype, stop: analysis.gain?.stops.find((stop) => stop.keep === value),
    }),
    curve: (gain) => { analysis.gain = gain; },
    largest: (names) => chooser.largestBudget(kinds(names)),
    each: (i) => chooser.spectra[i],
  };
};
"""


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_weights() -> Analysis:
    shapes = {"q_proj": (48, 32), "v_proj": (16, 32), "down_proj": (32, 64)}
    weights = {
        f"model.layers.{layer}.{kind}.weight": randn(*shape, seed=10 * layer + place) / (1 + layer)
        for layer in range(4)
        for place, (kind, shape) in enumerate(shapes.items())
    }
    weights["model.layers.1.v_proj.weight"] = torch.zeros(16, 32)
    weights["model.layers.2.q_proj.weight"] = weights["model.layers.3.q_proj.weight"].clone()  # ties everywhere
    weights["model.layers.3.v_proj.weight"] = 0.5 * torch.eye(16, 32)  # and within
    weights["model.layers.0.q_proj.weight"] *= 1e6
    return analyze(weights | {"model.embed_tokens.weight": randn(100, 32, seed=99)})


def of_an_update() -> Analysis:
    return replace(of_weights(), kind="delta", source="tuned", base="base")


def of_an_adapter() -> Analysis:
    def layer(rank: int, seed: int) -> AdapterLayer:
        return AdapterLayer(randn(rank, 32, seed=seed).float(), randn(24, rank, seed=seed + 50).float(), alpha=rank)

    layers = {f"layers.{i}.q_proj": layer(2 + i, i) for i in range(5)}
    return analyze(Adapter(layers | {"layers.5.q_proj": replace(layer(3, 7), lora_B=torch.zeros(24, 3))}))


def partly_known() -> Analysis:
    def known(i: int) -> MatrixAnalysis:
        weight = (randn(120, 90, seed=i) @ torch.diag(torch.arange(1, 91, dtype=torch.float64) ** -0.5)).float()
        found = partial_spectrum(weight, rank=24, generator=torch.Generator().manual_seed(i))
        return MatrixAnalysis(f"layers.{i}.up_proj", (120, 90), "float32", found)

    return Analysis("delta", "tuned", "base", [*map(known, range(4)), *of_weights().matrices[:6]])


SUBJECTS = {
    "weights": (of_weights, 2**18),
    "update": (of_an_update, 2**18),
    "adapter": (of_an_adapter, 2**18),
    "thinned": (of_an_update, 200),
    "partly known": (partly_known, 2**18),
}


@pytest.fixture(scope="module")
def page(browser: Browser):
    page = browser.new_page()
    page.add_script_tag(content=bundle.script("view_analysis", then=READY))
    yield page
    page.close()


@pytest.fixture(scope="module", params=list(SUBJECTS))
def subject(request: pytest.FixtureRequest, page):
    """An analysis, and its rules in the browser."""
    make, most = SUBJECTS[request.param]
    analysis, numbers = make(), Numbers()
    data = analysis_data(analysis, "subject", numbers, most=most)
    page.evaluate("([data, numbers]) => { globalThis.here = rules(data, numbers); }", [data, list(numbers.values)])
    return analysis, data, page


def choose(page, choices: list[tuple]) -> list[dict]:
    """What the page makes of choices, each (mode, value, kinds)."""
    return page.evaluate(
        "(choices) => choices.map(([mode, value, kinds]) => here.choose(mode, value, kinds, 'float32'))",
        [list(choice) for choice in choices],
    )


def check(subject, mode: str, values: list, kinds: list[str]) -> None:
    analysis, _, page = subject
    choices = [(mode, value, kinds) for value in values]
    for choice, found in zip(choices, choose(page, choices), strict=True):
        right = expected(analysis, *choice)
        assert found["ranks"] == right.ranks, choice
        assert (found["params"], found["error"]) == (right.params, right.error), choice


@pytest.mark.parametrize("mode", ["rank", "energy", "error"])
def test_ranks_and_totals_are_the_librarys_at_every_stop(subject, mode: str) -> None:
    check(subject, mode, subject[1]["stops"][mode], choosable(subject[0]))


def test_every_matrix_gets_the_directions_above_its_noise(subject) -> None:
    analysis, _, page = subject
    kinds, where = choosable(analysis), analysis.places()
    (found,) = choose(page, [("noise", "noise", kinds)])
    signal = [matrix.noise.signal_rank if matrix.noise else 0 for matrix in analysis.matrices]
    assert found["ranks"] == [
        rank if where[matrix.name].kind in kinds else None
        for rank, matrix in zip(signal, analysis.matrices, strict=True)
    ]


# What a measured curve of ranks and gains is as stops: the rank, the share that only it keeps, and what is known below.
CURVES = {
    "every rank": ([(1, 0.404), (2, 0.9), (3, 0.957)], [(1, 0.4, True), (2, 0.9, True), (3, 0.95, True)]),
    "a lower rank is better": ([(1, 0.5), (2, 0.45), (4, 0.8)], [(1, 0.5, True), (4, 0.8, False)]),
    "close together": ([(7, 0.9501), (8, 0.9507)], [(7, 0.95, False), (8, 0.9507, True)]),
    "a loss and all of it": ([(1, -0.1), (4, 0.97), (8, 1.0)], [(4, 0.95, False), (8, 0.99, False)]),
    "more than all": ([(4, 0.999), (8, 1.02)], [(4, 0.95, False), (8, 0.9999, False)]),
    "nothing": ([(1, 0.0)], []),
}


def by_gain(points: list, analysis: Analysis, **more) -> dict:
    curve = [{"rank": rank, "gain_recovered": gain, "interval": None} for rank, gain in points]
    layers = [{"name": matrix.name, "shape": list(matrix.shape)} for matrix in analysis.matrices]
    gain = {"keep": 0.95, "curve": curve, "base": analysis.base, "source": analysis.source}
    return {"gain": gain | more, "layers": layers}


@pytest.mark.parametrize(("points", "stops"), CURVES.values(), ids=CURVES)
def test_a_gain_curve_has_a_stop_for_every_rank_that_keeps_more(points: list, stops: list) -> None:
    found = gain_stops("title", by_gain(points, of_an_update()))["stops"]
    assert [(stop["rank"], stop["keep"], stop["next"]) for stop in found] == stops


def test_ranks_by_gain_are_those_that_were_measured(subject) -> None:
    analysis, _, page = subject
    kinds, where = choosable(analysis), analysis.places()
    uniform, shared = by_gain([(2, 0.5), (4, 0.9)], analysis), by_gain([(2, 0.5)], analysis, shared=True)
    ranks = {matrix.name: place % 3 for place, matrix in enumerate(analysis.matrices)}
    shared["gain"]["curve"][0]["ranks"] = ranks
    is_adapter = analysis.kind == "adapter"
    most = {
        m.name: len(m.spectrum.singular_values) if is_adapter else bool(m.spectrum.fro_norm) * m.spectrum.max_rank
        for m in analysis.matrices
    }
    four = {name: min(4, rank) for name, rank in most.items()}
    for extraction, keep, right in ((uniform, 0.9, four), (shared, 0.5, ranks)):
        page.evaluate("(gain) => here.curve(gain)", gain_stops("title", extraction))
        (found,) = choose(page, [("gain", keep, kinds)])
        assert found["ranks"] == [right[m.name] if where[m.name].kind in kinds else None for m in analysis.matrices]


OTHERS = {
    "itself": ({}, True),
    "another source": ({"source": "other"}, False),
    "another base": ({"base": "other"}, False),
    "a spelling": ({"source": "./tuned"}, True),
    "an old file": ({"source": None}, False),
}


@pytest.mark.parametrize(("more", "right"), OTHERS.values(), ids=OTHERS)
def test_a_gain_curve_belongs_to_the_update_that_it_was_measured_on(more: dict, right: bool) -> None:
    analysis = of_an_update()
    assert is_of(by_gain([(1, 0.5)], analysis, **more), analysis) is right
    assert not is_of(by_gain([(1, 0.5)], analysis, **more), of_weights())


def test_a_budget_is_shared_as_the_library_shares_it(subject) -> None:
    analysis, _, page = subject
    kinds = choosable(analysis)
    largest = page.evaluate("(kinds) => here.largest(kinds)", kinds)
    assert largest > 1000
    check(subject, "budget", [str(largest * share // 50) for share in range(1, 51)], kinds)
    if analysis.kind != "adapter":
        check(subject, "budget", [f"{largest * share / 12_500_000:.6f}MB" for share in range(1, 51)], kinds)


def test_fewer_kinds_share_among_themselves(subject) -> None:
    kinds = choosable(subject[0])[:1]
    check(subject, "budget", ["1k"], kinds)
    check(subject, "energy", [0.7], kinds)


def test_a_budgets_guarantee_is_the_librarys(subject) -> None:
    analysis, _, page = subject
    kinds, where = choosable(analysis), analysis.places()
    taken = {m.name: m.spectrum for m in analysis.matrices if where[m.name].kind in kinds}
    largest = page.evaluate("(kinds) => here.largest(kinds)", kinds)
    budgets = [largest // 4, largest // 2, largest]
    chosen = choose(page, [("budget", str(params), kinds) for params in budgets])
    for params, found in zip(budgets, (each["allocation"] for each in chosen), strict=True):
        right = allocate(taken, budget_params=params)
        assert found["gap"] == pytest.approx(right.gap, rel=1e-12, abs=1e-15)
        assert found["certain"] == right.certain


def test_a_budget_that_needs_values_that_are_not_there_is_not_certain(page) -> None:
    analysis, numbers = of_an_update(), Numbers()
    data = analysis_data(analysis, "subject", numbers, most=200)
    page.evaluate("([data, numbers]) => { globalThis.here = rules(data, numbers); }", [data, list(numbers.values)])
    kinds = choosable(analysis)
    largest = page.evaluate("(kinds) => here.largest(kinds)", kinds)
    (found,) = choose(page, [("budget", str(2 * largest), kinds)])
    assert not found["allocation"]["certain"]


def test_stops_go_from_small_adapters_to_large_ones() -> None:
    assert list(ENERGIES) == sorted(ENERGIES)
    assert list(ERRORS) == sorted(ERRORS, reverse=True)


def test_between_stops_a_thinned_spectrum_asks_for_enough_rank(page) -> None:
    """Never for less than is needed, and never for more than the next rank that is kept."""
    analysis, numbers = of_an_update(), Numbers()
    data = analysis_data(analysis, "subject", numbers, most=120)
    page.evaluate("([data, numbers]) => { globalThis.here = rules(data, numbers); }", [data, list(numbers.values)])
    kinds = choosable(analysis)
    energies = (0.503, 0.8123, 0.9017, 0.9871)
    chosen = choose(page, [("energy", energy, kinds) for energy in energies])
    for energy, found in zip(energies, chosen, strict=True):
        right = expected(analysis, "energy", energy, kinds)
        more = expected(analysis, "energy", min(stop for stop in ENERGIES if stop > energy), kinds)
        for rank, least, most in zip(found["ranks"], right.ranks, more.ranks, strict=True):
            assert rank is None or least <= rank <= most


def test_selected_ranks_include_those_of_every_stop() -> None:
    spectrum = of_weights().matrices[0].spectrum
    found = set(_ranks_at_stops(spectrum))
    assert found == {spectrum.rank_for_energy(energy) for energy in ENERGIES} | {
        spectrum.rank_for_error(error) for error in ERRORS
    }
