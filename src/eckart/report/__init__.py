"""Results for readers: tables for a terminal, figures for a page."""

from eckart.report.figures import energy_figure, error_figure, save_figures, spectrum_figure
from eckart.report.rank_map import rank_map
from eckart.report.tables import analysis_table, adapter_table, left_out_lines

__all__ = [
    "analysis_table",
    "energy_figure",
    "error_figure",
    "adapter_table",
    "left_out_lines",
    "rank_map",
    "save_figures",
    "spectrum_figure",
]
