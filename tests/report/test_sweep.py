"""A sweep's table and figure say what its cells say."""

import io

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from eckart.errors import OutputError
from eckart.report.figures.sweep import save_sweep_figure, sweep_figure
from eckart.report.tables.sweep import sweep_table
from eckart.training.sweep_result import Sweep, SweepCell

MEANS = {("attention", 4): 2.60, ("attention", 16): 2.522, ("all-linear", 4): 2.52, ("all-linear", 16): 2.51}
SCATTER = (0.02, -0.02, 0.0)


def swept(seeds=3, means=None, failed=()) -> Sweep:
    cells = [
        SweepCell(rank, target, seed, None, None, None, None, "the loss is not finite")
        if (target, rank, seed) in failed
        else SweepCell(
            rank,
            target,
            seed,
            mean + SCATTER[seed % 3] + 0.0005 * ((rank + seed) % 2),
            rank * (10_000 if target == "attention" else 30_000),
            59.0 + seed,
            (2 + seed) * 10**9,
        )
        for seed in range(seeds)
        for (target, rank), mean in (means or MEANS).items()
    ]
    return Sweep({"model": "org/a-model-with-a-name-of-a-usual-length"}, cells, 2.744, 32768, 100.0)


def text(result: Sweep) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(sweep_table(result))
    return "\n".join(line.strip() for line in console.file.getvalue().splitlines())


def row(shown: str, start: str) -> list[str]:
    return next(line.split() for line in shown.splitlines() if line.strip().startswith(start))


def test_a_line_a_setting_has_mean_and_standard_error_mean_time_and_peak_memory():
    shown = text(swept())
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert " ".join(row(shown, "attention")) == "attention 4 40 k 2.6002 ± 0.0114 60 s 4 GB"
    assert "mean of 3 seeds ± its standard error" in shown
    assert "Without an adapter: 2.7440, on 32,768 held-out tokens." in shown


def test_the_sweet_spot_is_marked_and_explained():
    shown = text(swept())
    assert "sweet spot" in next(line for line in shown.splitlines() if "120 k" in line and "all-linear" in line)
    assert "best" in next(line for line in shown.splitlines() if "480 k" in line)
    assert "Sweet spot: rank 4 on all-linear, 120 k parameters." in shown
    assert "above the best (rank 16 on all-linear)" in shown.replace("\n", " ")
    assert "Confidence: at least 9" in shown
    assert "a higher one may be better" in shown.replace("\n", " ")


def test_one_seed_shows_no_spread_and_says_so():
    shown = text(swept(seeds=1))
    assert "±" not in shown
    assert "with one seed the noise is unknown: use `seeds=3`" in shown
    assert "sweet spot" in shown


def test_an_undecided_sweep_says_how_many_seeds_are_missing():
    close = {("attention", 4): 2.526, ("attention", 16): 2.51}
    result = swept(means=close)
    cells = [
        SweepCell(c.rank, c.target, c.seed, c.loss + 0.02 * (c.rank == 4) * (c.seed - 1), *(c.params, 1.0, 1))
        for c in result.cells
    ]
    undecided = Sweep(result.about, cells, 2.7, 100, 1.0)
    assert not undecided.sweet_spot.decided
    shown = text(undecided)
    assert "Undecided (probability 0." in shown
    assert f"about {undecided.sweet_spot.more_seeds} more seeds would be needed" in shown


def test_failed_cells_are_named_with_their_reason():
    shown = text(swept(failed={("attention", 16, 1)}))
    assert "failed" in next(line for line in shown.splitlines() if line.startswith("attention") and " 16 " in line)
    assert "Failed: rank 16 on attention, seed 1: the loss is not finite" in shown
    every = {(target, rank, seed) for target, rank in MEANS for seed in range(3)}
    lost = text(swept(failed=every))
    assert "Failed: 9 more cells." in lost
    assert "No setting was trained with every seed." in lost


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure_shows_means_over_parameters_and_rings_the_sweet_spot(seeds):
    result = swept(seeds=seeds)
    figure = sweep_figure(result)
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    lines = {container.get_label(): container[0] for container in axes.containers}
    of_target = [setting for setting in result.settings if setting.target == "attention"]
    assert list(lines["attention"].get_xdata()) == [setting.params for setting in of_target]
    assert list(lines["attention"].get_ydata()) == [setting.mean for setting in of_target]
    ring = next(line for line in axes.get_lines() if line.get_label() == "sweet spot")
    spot = result.sweet_spot
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (spot.setting.params, spot.setting.mean)
    assert f"rank {spot.setting.rank} on {spot.setting.target}" in figure.texts[0].get_text()
    assert ("no spread" in figure.texts[1].get_text()) == (seeds == 1)


def test_texts_of_the_figure_stay_inside_and_apart():
    figure = sweep_figure(swept())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [item.get_window_extent(renderer) for item in (*figure.texts, *figure.legends)]
    boxes.append(figure.axes[0].get_tightbbox(renderer))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width + 1 and box.y1 <= figure.bbox.height + 1 for box in boxes)
    assert not any(box.overlaps(other) for place, box in enumerate(boxes) for other in boxes[place + 1 :])


def test_a_file_is_written_unless_everything_failed(tmp_path):
    assert save_sweep_figure(swept(), tmp_path).read_bytes().startswith(b"\x89PNG")
    every = {(target, rank, seed) for target, rank in MEANS for seed in range(3)}
    assert save_sweep_figure(swept(failed=every), tmp_path) is None
    with pytest.raises(ValueError, match="every setting failed"):
        sweep_figure(swept(failed=every))
    with pytest.raises(OutputError, match="nowhere does not exist"):
        save_sweep_figure(swept(), tmp_path / "nowhere")
