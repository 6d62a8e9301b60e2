"""A plan's table and figure say what the plan holds."""

import pytest
from rich.console import Console

from eckart.errors import OutputError
from eckart.planning import plan
from eckart.report import plan_figure, plan_table, save_plan_figure


@pytest.fixture(scope="module")
def planned():
    return plan("8B", memory="24GB")


def shown(result) -> str:
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(plan_table(result))
    return captured.get()


def test_the_table_has_a_line_a_method_and_says_which_fit(planned):
    lines = {line.split()[0]: line for line in shown(planned).splitlines() if line.strip()}
    for forecast in planned.forecasts:
        assert lines[forecast.setting.method].rstrip().endswith("yes" if planned.has_room_for(forecast) else "no")


def test_without_a_memory_the_table_names_the_smallest_card():
    assert "several" in shown(plan("400B", method="full"))
    assert "24 GB" in shown(plan("2B", method="full", max_length=128))


def test_bars_are_as_long_as_the_peaks_and_the_line_is_the_memory(planned):
    axes = plan_figure(planned).axes[0]
    ends = {}
    for bar in axes.patches:
        ends[bar.get_y()] = max(ends.get(bar.get_y(), 0), bar.get_x() + bar.get_width())
    assert sorted(ends.values()) == pytest.approx(sorted(each.peak_bytes / 1e9 for each in planned.forecasts))
    assert [line.get_xdata()[0] for line in axes.lines] == [23.5]


def test_a_figure_of_an_unknown_kind_is_refused(planned, tmp_path):
    with pytest.raises(OutputError, match=r"\.png"):
        save_plan_figure(planned, tmp_path / "bars.xyz")
