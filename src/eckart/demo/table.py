"""The end of the story as a table that explains itself."""

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eckart.report.words import bytes_text, seconds_text

if TYPE_CHECKING:
    from eckart.demo.story import Story


def story_table(story: "Story") -> RenderableType:
    """Base, adapters and fine-tune, a line each: size, error of the weights, loss, gain recovered."""
    first = story.chapters[0].gain
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("model")
    for heading in ("size", "error of\nthe weights", "held-out loss\nnats/token", "gain\nrecovered"):
        table.add_column(heading, justify="right", no_wrap=True)
    size = bytes_text((story.pair.tuned / "model.safetensors").stat().st_size)
    table.add_row("base", size, "100%", f"{first.base_loss:.4f}", "0%")
    for chapter in story.chapters:
        found, gain = chapter.extraction, chapter.gain
        recovered = "–" if gain.gain_recovered is None else f"{gain.gain_recovered:.0%}"
        label = f"base + adapter, rank {chapter.rank}"
        table.add_row(label, bytes_text(found.nbytes), f"{found.error:.0%}", f"{gain.adapter_loss:.4f}", recovered)
    table.add_row("fine-tune", size, "0%", f"{first.tuned_loss:.4f}", "–" if first.note else "100%")
    return Group(
        Text("What a low-rank adapter keeps of a fine-tune", style="bold"),
        table,
        *(Text(line) for line in _explanation(story)),
    )


def _explanation(story: "Story") -> list[str]:
    gain = story.chapters[0].gain
    return [
        "Error of the weights: ‖ΔW − BA‖ / ‖ΔW‖, ΔW = fine-tune − base, of projections;",
        "the fine-tune moved embeddings and norms too, which these adapters leave alone.",
        f"Held-out loss: on {gain.tokens:,} tokens of Python's reference, none trained on.",
        "Gain recovered: the part of the fine-tune's lower loss that the adapter keeps.",
        *([gain.note] if gain.note else []),
        "",
        f"Models    {story.pair.base}, {story.pair.tuned}",
        f"Adapters  {', '.join(str(chapter.extraction.output) for chapter in story.chapters)}",
        f"Spectra   {story.analysis_folder} ({', '.join(path.name for path in story.figures)})",
        f"Time      {seconds_text(story.seconds)}",
    ]
