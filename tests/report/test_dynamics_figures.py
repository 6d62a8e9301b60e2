"""Figures of a training say what its record says."""

import math
from statistics import fmean, median

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eckart.errors import OutputError
from eckart.report.figures import style
from eckart.report.figures.training import loss_figure, save_dynamics
from eckart.report.figures.updates import alignment_figure, growth_figure, spectra_figure, update_map
from eckart.training.trajectory import Dynamics, LayerDynamics, SideDynamics

STEPS = [0, 1, 2, 4, 8, 20]
KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
LAYERS, DIRECTIONS = 5, 4
ALL = [loss_figure, growth_figure, spectra_figure, update_map, alignment_figure]


def layer(number: int, kind: str) -> LayerDynamics:
    """An update that grows, the more the later its layer; of one direction at first, of three in the end."""
    pace = (1 + number) * (1 + KINDS.index(kind))
    spectra = [[pace * step * share for share in (1.0, 0.5, 0.2)[: 1 + step]] if step else [] for step in STEPS]
    norms = [math.hypot(*values) for values in spectra]
    side = SideDynamics(
        chance=DIRECTIONS / 64,
        share=[None, *(0.05 * pace / step**0.5 for step in STEPS[1:])],
        phi=[None, *([0.04 * pace, 0.02 * pace] for _ in STEPS[1:])],
    )
    return LayerDynamics(
        name=f"model.layers.{number}.{kind}",
        shape=(64, 64),
        rank=3,
        base_norm=1000.0,
        A_norm=[2 + 0.01 * step for step in STEPS],
        B_norm=[0.1 * step for step in STEPS],
        norm=norms,
        relative_norm=[norm / 1000 for norm in norms],
        effective_rank=[None, *(1 + step / 10 for step in STEPS[1:])],
        stable_rank=[None, *(1.0 for _ in STEPS[1:])],
        singular_values=spectra,
        outputs=side,
        inputs=side,
    )


@pytest.fixture
def dynamics() -> Dynamics:
    log = {
        step: {"loss": 3 - 0.05 * step, "learning_rate": 1e-3 / step, "gradient_norm": 10 / step}
        for step in range(1, 21)
    }
    log[0] = {"heldout_loss": 3.2}
    log[20]["heldout_loss"] = 2.4
    layers = [layer(number, kind) for number in range(LAYERS) for kind in KINDS]
    return Dynamics("a small model", DIRECTIONS, log, list(STEPS), layers)


def lines(axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


@pytest.mark.parametrize("draw", ALL)
def test_texts_stay_inside_and_apart_and_name_what_was_trained(draw, dynamics):
    dynamics.title = "SmolLM2-135M-Instruct, rank 16 on all linear layers"
    figure: Figure = draw(dynamics)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    assert dynamics.title in figure.texts[1].get_text()
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    boxes += [axes.get_tightbbox(renderer) for axes in figure.axes if axes.get_visible()]
    for box in boxes:
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width + 1
        assert box.y1 <= figure.bbox.height + 1
    assert not any(box.overlaps(other) for place, box in enumerate(boxes) for other in boxes[place + 1 :])


def test_the_loss_is_drawn_step_by_step_and_as_a_mean_with_held_out_marks(dynamics):
    figure = loss_figure(dynamics)
    drawn = lines(figure.axes[0])
    assert drawn["held-out"] == ([0, 20], [3.2, 2.4])
    steps, losses = drawn["training, each step"]
    assert (steps, losses) == dynamics.logged("loss")
    means = drawn["training, mean of 3 steps"][1]
    assert means[0] == pytest.approx(fmean(losses[:2]))
    assert means[10] == pytest.approx(fmean(losses[9:12]))
    assert figure.texts[0].get_text() == "Held-out loss fell from 3.200 to 2.400"
    assert [axes.get_ylabel() for axes in figure.axes[1:]] == ["learning rate", "gradient norm"]
    assert figure.axes[2].get_yscale() == "log"


def test_a_run_without_held_out_losses_shows_the_training_loss(dynamics):
    for row in dynamics.log.values():
        row.pop("heldout_loss", None)
    assert loss_figure(dynamics).texts[0].get_text() == "Training loss went from 2.925 to 2.025"


def test_growth_lines_are_medians_over_the_layers_and_bars_their_range(dynamics):
    figure = growth_figure(dynamics)
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert list(panels) == ["‖A‖", "‖B‖", "‖ΔW‖ / ‖W‖", "effective rank of ΔW"]
    drawn = lines(panels["‖ΔW‖ / ‖W‖"])
    assert list(drawn) == ["q_proj", "v_proj", "down_proj"]
    of_kind = [layer.relative_norm for layer in dynamics.layers if layer.name.endswith("v_proj")]
    assert drawn["v_proj"] == (STEPS, [median(column) for column in zip(*of_kind, strict=True)])
    bars = [line for line in panels["‖ΔW‖ / ‖W‖"].get_lines() if str(line.get_label()).startswith("_")]
    final = [norms[-1] for norms in of_kind]
    assert list(bars[1].get_ydata()) == [min(final), max(final)]
    assert math.isnan(lines(panels["effective rank of ΔW"])["q_proj"][1][0])


def test_of_each_kind_the_layer_that_changed_most_shows_its_spectrum(dynamics):
    figure = spectra_figure(dynamics)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "q_proj, layer 4",
        "v_proj, layer 4",
        "down_proj, layer 4",
    ]
    first, *_, last = figure.axes[0].get_lines()
    assert list(first.get_ydata())[1:] == [values[0] for values in dynamics.layers[-3].singular_values if values]
    assert list(last.get_ydata())[-1] == dynamics.layers[-3].singular_values[-1][2]
    named = spectra_figure(dynamics, layers=["model.layers.1.mlp.down_proj"])
    assert [axes.get_title(loc="left") for axes in named.axes] == ["down_proj, layer 1"]


def test_the_maps_hold_the_last_numbers_and_the_headline_the_largest(dynamics):
    figure = update_map(dynamics)
    norms, ranks = (axes.images[0].get_array() for axes in figure.axes[:2])
    assert norms.shape == ranks.shape == (len(KINDS), LAYERS)
    for entry in dynamics.layers:
        number, kind = int(entry.name.split(".")[2]), KINDS.index(entry.name.split(".", 3)[3])
        assert float(norms[kind, number]) == pytest.approx(100 * entry.relative_norm[-1], rel=1e-5)
        assert float(ranks[kind, number]) == pytest.approx(entry.effective_rank[-1], rel=1e-5)
    assert figure.texts[0].get_text().startswith("down_proj, layer 4 changed most")


def test_alignment_is_shown_over_chance(dynamics):
    figure = alignment_figure(dynamics)
    outputs = lines(figure.axes[0])["q_proj"][1]
    share = median([layer.outputs.share[-1] for layer in dynamics.layers if layer.name.endswith("q_proj")])
    assert outputs[-1] == pytest.approx(share / (DIRECTIONS / 64))
    strongest = lines(figure.axes[2])["q_proj"][1]
    assert strongest[-1] == pytest.approx(0.04 * 3 / (DIRECTIONS / 64))
    assert any(list(line.get_ydata()) == [1, 1] for line in figure.axes[0].get_lines())
    for entry in dynamics.layers:
        entry.outputs = entry.inputs = None
    with pytest.raises(ValueError, match="skipped"):
        alignment_figure(dynamics)


@pytest.mark.parametrize("draw", [loss_figure, growth_figure, spectra_figure, alignment_figure])
def test_all_panels_of_a_figure_have_the_same_steps_and_none_past_the_last(draw, dynamics):
    figure = draw(dynamics)
    figure.canvas.draw()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    ticks = {tuple(axes.get_xticks()) for axes in panels}
    assert len(panels) >= 3
    assert ticks == {(0, 4, 8, 12, 16, 20)}
    assert len({axes.get_xlim() for axes in panels}) == 1


def test_the_legend_of_the_loss_stands_above_the_grid(dynamics):
    figure = loss_figure(dynamics)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    legend = axes.get_legend().get_window_extent(canvas.get_renderer())
    assert legend.y0 >= axes.get_window_extent().y1


def test_the_titles_of_color_bars_stand_clear_of_their_numbers(dynamics):
    figure = update_map(dynamics)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    bars = [axes for axes in figure.axes if axes.get_ylabel()]
    assert [axes.get_ylabel() for axes in bars] == ["‖ΔW‖ / ‖W‖, %", "effective rank of ΔW"]
    for axes in bars:
        title = axes.yaxis.label.get_window_extent(renderer)
        assert not any(title.overlaps(label.get_window_extent(renderer)) for label in axes.get_yticklabels())


def test_files_are_written_for_what_was_recorded(dynamics, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "DPI", 30)
    names = [path.name for path in save_dynamics(dynamics, tmp_path / "figures")]
    assert names == ["loss.png", "growth.png", "spectra.png", "update_map.png", "alignment.png"]
    assert all((tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    only_losses = Dynamics(log=dynamics.log)
    assert [path.name for path in save_dynamics(only_losses, tmp_path)] == ["loss.png"]
    still = layer(0, KINDS[0])
    for column in still.columns():
        del column[1:]
    assert save_dynamics(Dynamics(steps=[0], layers=[still]), tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write figures"):
        save_dynamics(dynamics, tmp_path / "file")
