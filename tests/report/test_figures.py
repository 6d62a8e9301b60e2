"""Figures say what the numbers say: every line, mark, cell and headline against the analysis."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eckart.errors import MissingExtraError, OutputError
from eckart.linalg import Spectrum
from eckart.operations import Analysis, analyze
from eckart.report import energy_figure, error_figure, rank_map, save_figures, spectrum_figure

ALL = [spectrum_figure, energy_figure, error_figure, rank_map]
EVERY = pytest.mark.parametrize("which", ["of_weights", "of_update", "of_adapter"])


def headline(figure: Figure) -> str:
    return figure.texts[0].get_text()


def lines(figure: Figure) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Data of every labelled line of the first axes, by the module it names."""
    drawn = figure.axes[0].get_lines()
    return {
        str(line.get_label()).split("  ·  ")[0]: (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in drawn
        if "  ·  " in str(line.get_label())
    }


@EVERY
@pytest.mark.parametrize("draw", ALL)
def test_a_figure_has_a_headline_and_named_axes(draw, which: str, request: pytest.FixtureRequest) -> None:
    analysis: Analysis = request.getfixturevalue(which)
    figure = draw(analysis)
    figure.canvas.draw()
    assert analysis.source in figure.texts[1].get_text()
    assert all(character.isprintable() for character in headline(figure))
    assert figure.axes[0].get_xlabel()
    assert figure.axes[0].get_ylabel() or draw is rank_map


@pytest.mark.parametrize("draw", [spectrum_figure, energy_figure, error_figure])
def test_texts_do_not_run_out_of_the_figure_or_into_each_other(draw, of_weights: Analysis) -> None:
    figure = draw(replace(of_weights, source="org/a-model-with-a-name-of-a-usual-length"))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    boxes += [axes.get_tightbbox(renderer) for axes in figure.axes]
    for box in boxes:
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width + 1
        assert box.y1 <= figure.bbox.height + 1
    assert not any(box.overlaps(other) for place, box in enumerate(boxes) for other in boxes[place + 1 :])


def test_the_energy_line_is_the_median_over_the_layers(of_update: Analysis) -> None:
    curves = lines(energy_figure(of_update))
    assert list(curves) == ["q_proj", "v_proj", "down_proj"]
    ranks, energy = curves["q_proj"]
    of_layers = torch.stack([matrix.spectrum.cumulative_energy() for matrix in of_update.by_kind()["q_proj"]])
    np.testing.assert_allclose(energy, np.median(of_layers.numpy(), axis=0), rtol=1e-12)
    assert ranks[0] == 1


def test_the_error_line_falls_out_of_the_axes(of_weights: Analysis) -> None:
    for _, errors in lines(error_figure(of_weights)).values():
        assert np.all(np.diff(errors) <= 0)
        assert errors[0] < 1
        assert errors[-1] < 0.001


def test_the_spectrum_is_drawn_in_shares_of_the_largest_value(of_update: Analysis) -> None:
    figure = spectrum_figure(of_update)
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log"]
    assert all(values[0] == 1 for _, values in lines(figure).values())


def test_a_circle_marks_the_noise_edge_of_an_update(of_update: Analysis, of_adapter: Analysis) -> None:
    marked = [text.get_text() for text in spectrum_figure(of_update).legends[0].get_texts()]
    assert marked[-1] == "noise edge (median)"
    unmarked = [text.get_text() for text in spectrum_figure(of_adapter).legends[0].get_texts()]
    assert all("edge" not in text for text in unmarked)


def test_the_headlines_give_the_medians(of_update: Analysis) -> None:
    nonzero = [matrix for matrix in of_update.matrices if matrix.spectrum.fro_norm > 0]
    needed = median(matrix.spectrum.rank_for_energy(0.9) for matrix in nonzero)
    kept = median(float(matrix.spectrum.cumulative_energy()[15]) for matrix in nonzero)
    assert 0.999 < kept < 1
    assert headline(energy_figure(of_update)) == (
        f"Rank 16 keeps 99.9% of the energy of the update; 90% needs rank {needed:.0f}"
    )
    signal = median(matrix.noise.signal_rank for matrix in nonzero if matrix.noise)
    assert headline(spectrum_figure(of_update)).startswith(f"{signal:.0f} of 32 directions of the update")


def test_the_headline_of_an_adapter_speaks_of_its_own_rank(of_adapter: Analysis) -> None:
    assert headline(energy_figure(of_adapter)).startswith("Rank 2 keeps")
    assert headline(spectrum_figure(of_adapter)).endswith("of 4 possible")


def test_the_map_has_a_cell_a_matrix_with_its_rank(of_weights: Analysis) -> None:
    cells = rank_map(of_weights).axes[0].get_images()[0].get_array()
    assert cells is not None
    assert cells.shape == (4, 9)  # embedding and three kinds; outside the layers and eight layers
    kinds = of_weights.by_kind()
    ranks = [matrix.spectrum.rank_for_energy(0.9) for matrix in kinds["v_proj"]]
    assert cells[2, 1:].tolist() == ranks
    assert np.isnan(np.ma.filled(cells, np.nan)[2, 0])


def test_a_bounded_rank_is_called_at_most(of_update: Analysis) -> None:
    from eckart.linalg import partial_spectrum

    weight = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    known = partial_spectrum(weight, rank=8, generator=torch.Generator().manual_seed(0))
    bounded = replace(of_update, matrices=[replace(of_update.matrices[0], shape=(200, 200), spectrum=known)])
    assert "at most" in headline(error_figure(bounded))


def test_few_matrices_are_drawn_one_by_one(of_weights: Analysis) -> None:
    few = replace(of_weights, matrices=of_weights.matrices[:3])
    assert list(lines(energy_figure(few))) == [matrix.name for matrix in few.matrices]


@pytest.mark.parametrize("draw", ALL)
def test_one_matrix_of_rank_one_can_be_drawn(draw) -> None:
    assert draw(analyze({"weight": torch.ones(3, 2)}))


@pytest.mark.parametrize("draw", ALL)
def test_nothing_to_draw_is_said(draw) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(analyze({"weight": torch.zeros(3, 2)}))


def test_all_figures_are_saved_as_png(of_update: Analysis, tmp_path: Path) -> None:
    paths = save_figures(of_update, tmp_path / "figures")
    assert [path.name for path in paths] == ["spectrum.png", "energy.png", "error.png", "rank_map.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert sorted(tmp_path.glob("figures/*")) == sorted(paths)


def test_figures_of_nothing_are_no_files(tmp_path: Path) -> None:
    assert save_figures(analyze({"weight": torch.zeros(3, 2)}), tmp_path / "figures") == []


def test_a_file_in_the_place_of_the_folder_is_refused(of_update: Analysis, tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("mine")
    with pytest.raises(OutputError, match="cannot write figures"):
        save_figures(of_update, tmp_path / "figures")


def test_without_matplotlib_the_error_names_the_extra(of_update: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"'report' extra: pip install '"):
        energy_figure(of_update)


def test_drawing_needs_no_pyplot() -> None:
    program = (
        "import sys, torch, eckart; from eckart.report import rank_map, spectrum_figure;"
        "found = eckart.analyze({'weight': torch.randn(4, 4)}); rank_map(found); spectrum_figure(found);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_curve_ends_where_the_shortest_known_spectrum_ends(of_weights: Analysis) -> None:
    first, *others = of_weights.by_kind()["q_proj"]
    spectrum = first.spectrum
    shorter = Spectrum(spectrum.singular_values[:5], spectrum.shape, float(spectrum.singular_values[:5].norm()))
    mixed = replace(of_weights, matrices=[replace(first, spectrum=shorter), *others])
    assert len(lines(energy_figure(mixed))["q_proj"][0]) == 5


@pytest.mark.parametrize("draw", [energy_figure, error_figure])
def test_the_names_of_thresholds_stand_clear_of_the_lines(draw, of_weights: Analysis) -> None:
    figure = draw(of_weights)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, axes = canvas.get_renderer(), figure.axes[0]
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) in (2, 3)
    assert all(box.x0 > axes.get_window_extent(renderer).x1 for box in boxes)
    assert not any(box.overlaps(other) for place, box in enumerate(boxes) for other in boxes[place + 1 :])


def test_an_unchanged_matrix_is_a_zero_in_the_map_and_is_explained(of_update: Analysis) -> None:
    figure = rank_map(of_update)
    assert (*(text.get_position() for text in figure.axes[0].texts if text.get_text() == "0"),) == ((7, 2),)
    assert "0: unchanged" in figure.texts[1].get_text()


def test_a_headline_never_rounds_a_share_up_to_all(of_update: Analysis) -> None:
    values = torch.tensor([1.0] * 16 + [0.01] * 16, dtype=torch.float64)
    spectrum = Spectrum(values, (48, 48), float(values.norm()))
    almost = replace(of_update, matrices=[replace(of_update.matrices[0], shape=(48, 48), spectrum=spectrum)])
    assert headline(energy_figure(almost)).startswith("Rank 16 keeps 99.9% of")
