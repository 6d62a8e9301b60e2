"""Results for readers: tables for a terminal, figures for a page."""

from eckart.report.figures import energy_figure, error_figure, save_figures, spectrum_figure
from eckart.report.rank_map import rank_map
from eckart.report.tables import adapter_table, analysis_table, left_out_lines, preview_table

__all__ = [
    "adapter_table",
    "analysis_table",
    "energy_figure",
    "error_figure",
    "left_out_lines",
    "preview_table",
    "rank_map",
    "save_figures",
    "spectrum_figure",
]
