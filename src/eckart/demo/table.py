"""The result of the demo as tables with explanations."""

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eckart.report.tables.grid import SUMMARY
from eckart.report.tables.lines import Paragraph
from eckart.report.tables.training import updates_grid
from eckart.report.words import bytes_text, count_text, seconds_text

if TYPE_CHECKING:
    from eckart.demo.run import DemoResult


def demo_table(result: "DemoResult") -> RenderableType:
    """The trained updates; then size, loss and gain of base, adapter, resized adapters and merged model."""
    numbers, rank = result.learned.numbers, result.learned.dynamics.layers[0].rank
    share = numbers["trainable_params"] / numbers["total_params"]
    return Group(
        Text(f"What the adapter of rank {rank} learned", style="bold"),
        updates_grid(result.learned.dynamics.layers),
        Text(SUMMARY),
        Paragraph(
            f"{count_text(numbers['trainable_params'])} of {count_text(numbers['total_params'])} parameters trained "
            f"({share:.2%}), {numbers['steps']} steps in {seconds_text(numbers['seconds'])}, "
            f"peak memory {bytes_text(numbers['peak_bytes'])}"
        ),
        Text(),
        Text("The rank it needs", style="bold"),
        _losses(result, rank),
        *map(Paragraph, _explanation(result)),
        Text(),
        *map(Text, _files(result)),
    )


def _losses(result: "DemoResult", rank: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("model")
    for heading in ("size", "error of\nthe update", "held-out loss\nnats/token", "gain\nkept"):
        table.add_column(heading, justify="right", no_wrap=True)
    model = bytes_text(result.merged.nbytes)
    table.add_row("base", model, "", f"{result.base_loss:.4f}", "0%")
    size = bytes_text((result.learned.folder / "adapter_model.safetensors").stat().st_size)
    table.add_row(f"base + adapter, rank {rank}", size, "0%", f"{result.adapter_loss:.4f}", "100%")
    for smaller, (resized, loss) in result.tried.items():
        label, size = f"base + resized, rank {smaller}", bytes_text(resized.nbytes)
        table.add_row(label, size, f"{resized.error:.0%}", f"{loss:.4f}", f"{result.gain_kept(loss):.1%}")
    kept = result.gain_kept(result.merged_loss)
    table.add_row(f"merged, rank {result.rank}", model, "", f"{result.merged_loss:.4f}", f"{kept:.1%}")
    return table


def _explanation(result: "DemoResult") -> list[str]:
    same, base = result.match, result.base_match
    return [
        f"Held-out loss: on {result.tokens:,} tokens of Python's reference, not used for training.",
        f"Gain kept: share of the trained adapter's gain that is left; rank {result.rank} is the smallest that keeps "
        "enough, found by a search that measures the rank below it too.",
        f"The merged model predicts the same next token as base + adapter at {same.same_token:.1%} of "
        f"{same.positions} positions, KL {same.divergence:.1e} nats (the base alone: {base.same_token:.1%}, "
        f"{base.divergence:.1e}); the difference is rounding to the stored bfloat16.",
    ]


def _files(result: "DemoResult") -> list[str]:
    return [
        f"Adapters  {result.learned.folder}, {result.small.output}",
        f"Models    {result.base}, {result.merged.output}{f', {result.tuned}' if result.tuned else ''}",
        f"Page      {result.learned.page}",
        f"Figures   {result.learned.folder} ({', '.join(path.name for path in result.learned.figures)})",
        f"Time      {seconds_text(result.seconds)}",
    ]
