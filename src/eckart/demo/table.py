"""The end of the story as tables that explain themselves."""

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eckart.report.tables.grid import SUMMARY
from eckart.report.tables.training import updates_grid
from eckart.report.words import bytes_text, count_text, seconds_text

if TYPE_CHECKING:
    from eckart.demo.story import Story


def story_table(story: "Story") -> RenderableType:
    """What the updates became; then base, adapter, resized adapters and merge, a line each: size, loss, gain kept."""
    numbers, rank = story.learned.numbers, story.learned.dynamics.layers[0].rank
    share = numbers["trainable_params"] / numbers["total_params"]
    return Group(
        Text(f"What an adapter of rank {rank} learnt", style="bold"),
        updates_grid(story.learned.dynamics.layers),
        Text(SUMMARY),
        Text(
            f"{count_text(numbers['trainable_params'])} of {count_text(numbers['total_params'])} parameters trained "
            f"({share:.2%}), {numbers['steps']} steps in {seconds_text(numbers['seconds'])}, "
            f"peak memory {bytes_text(numbers['peak_bytes'])}"
        ),
        Text(),
        Text("The rank it needs", style="bold"),
        _losses(story, rank),
        *map(Text, _explanation(story)),
    )


def _losses(story: "Story", rank: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("model")
    for heading in ("size", "error of\nthe update", "held-out loss\nnats/token", "gain\nkept"):
        table.add_column(heading, justify="right", no_wrap=True)
    model = bytes_text(story.merged.nbytes)
    table.add_row("base", model, "", f"{story.base_loss:.4f}", "0%")
    size = bytes_text((story.learned.folder / "adapter_model.safetensors").stat().st_size)
    table.add_row(f"base + adapter, rank {rank}", size, "0%", f"{story.adapter_loss:.4f}", "100%")
    for tried in story.tried:
        label, size = f"base + resized, rank {tried.rank}", bytes_text(tried.resized.nbytes)
        table.add_row(label, size, f"{tried.resized.error:.0%}", f"{tried.loss:.4f}", f"{tried.kept:.1%}")
    kept = (story.base_loss - story.merged_loss) / (story.base_loss - story.adapter_loss)
    table.add_row(f"merged, rank {story.small.rank}", model, "", f"{story.merged_loss:.4f}", f"{kept:.1%}")
    return table


def _explanation(story: "Story") -> list[str]:
    same, change = story.agreement, story.change
    return [
        f"Held-out loss: on {story.tokens:,} tokens of Python's reference, none trained on.",
        "Gain kept: the part of the trained adapter's lower loss; the last rank tried is",
        "the smallest that keeps enough, since every rank below was measured too.",
        "Merged, the model holds the same next token likeliest as base + adapter does at",
        f"{same.same_token:.1%} of {same.positions} positions, KL {same.divergence:.1e} nats (the base's own answers:",
        f"{change.same_token:.1%}, {change.divergence:.1e}); what is left is rounding to the stored bfloat16.",
        "",
        f"Adapters  {story.learned.folder}, {story.small.resized.output}",
        f"Models    {story.base}, {story.merged.output}",
        f"Page      {story.learned.page}",
        f"Figures   {story.learned.folder} ({', '.join(path.name for path in story.learned.figures)})",
        f"Time      {seconds_text(story.seconds)}",
    ]
