"""Results for readers: tables for a terminal, figures for a page."""

from eckart.report.comparison import comparison_table, merge_check_table
from eckart.report.comparison_figures import alignment_map, overlap_map, save_comparison
from eckart.report.conversion import conversion_table
from eckart.report.dynamics_figures import loss_figure, save_dynamics
from eckart.report.figures import energy_figure, error_figure, save_figures, spectrum_figure
from eckart.report.merging import merge_table, unmerge_table
from eckart.report.plan import plan_table
from eckart.report.plan_figure import plan_figure, save_plan_figure
from eckart.report.quantization import quantize_table
from eckart.report.rank_map import rank_map
from eckart.report.sweep import sweep_table
from eckart.report.sweep_figure import save_sweep_figure, sweep_figure
from eckart.report.tables import adapter_table, analysis_table, preview_table, skipped_lines
from eckart.report.training import training_table

__all__ = [
    "adapter_table",
    "alignment_map",
    "analysis_table",
    "comparison_table",
    "conversion_table",
    "energy_figure",
    "error_figure",
    "loss_figure",
    "merge_check_table",
    "merge_table",
    "overlap_map",
    "plan_figure",
    "plan_table",
    "preview_table",
    "quantize_table",
    "rank_map",
    "save_comparison",
    "save_dynamics",
    "save_figures",
    "save_plan_figure",
    "save_sweep_figure",
    "skipped_lines",
    "spectrum_figure",
    "sweep_figure",
    "sweep_table",
    "training_table",
    "unmerge_table",
]
