"""Whether a rank chosen by its gain is the one that trying every rank finds, and whether intervals keep what they say.

Takes half an hour or more, so it runs only when named.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bench.options import Options
from bench.pair import get_pair
from bench.results import Limit

if TYPE_CHECKING:
    from eckart.adapter import Adapter
    from eckart.evaluation import HeldOut

KEEP = 0.95
SMALL_TEXT, LARGE_TEXT = 8, 80  # parts of 256 tokens
RESAMPLINGS = 50
MOST_RANK = 32
COVERED_RANK = 4


def run(options: Options) -> list[Limit]:
    """The search on a fine-tune of the pair, and the coverage of its intervals."""
    from eckart.demo.corpus import language_reference
    from eckart.evaluation import load_tokenizer
    from eckart.evaluation.held_out import windows_of
    from eckart.operations import extract

    base, tuned = get_pair(options.pair)
    text = "\n\n".join(language_reference(held_out_share=0.3).held_out.values())
    large = windows_of(text, load_tokenizer(base), length=256)
    adapter = extract(base, tuned, rank=MOST_RANK).adapter
    return [
        search(base, tuned, adapter, first(large, SMALL_TEXT)),
        coverage(base, tuned, adapter, first(large, LARGE_TEXT)),
    ]


def first(held_out: "HeldOut", parts: int) -> "HeldOut":
    """The first windows of a text, evenly spread."""
    from eckart.evaluation import HeldOut

    step = max(1, len(held_out.sequences) // parts)
    chosen = held_out.sequences[::step][:parts]
    return HeldOut(chosen, chosen)


def search(base: Path, tuned: "Path | Adapter", adapter: "Adapter", held_out: "HeldOut") -> Limit:
    """How many ranks the search measures, of all; it must find what trying every one finds."""
    from eckart.evaluation import GainMeter
    from eckart.evaluation.search import smallest_sufficient
    from eckart.operations.truncation import Truncations

    meter = GainMeter(base, tuned, held_out)
    truncations = Truncations.of(adapter)
    ranks = [truncations.uniform(rank) for rank in range(1, truncations.highest_rank + 1)]
    gains = [meter.gains.gain(meter.losses(truncations.at(each))) for each in ranks]
    lost = [truncations.lost(each) for each in ranks]
    last = 1.0 if not isinstance(tuned, Path) else None
    index, measured = smallest_sufficient(lost, gains.__getitem__, keep=KEEP, last=last)
    every = next((i for i, gain in enumerate(gains) if gain >= KEEP), None)
    assert index == every, f"the search finds candidate {index}, trying every rank {every}: {gains}"
    count = len(measured) - (last is not None)
    return Limit(
        task=f"ranks measured to find the smallest that keeps {KEEP:.0%}; limit: a third of all {len(ranks)}",
        value=count,
        limit=len(ranks) / 3,
        unit="measurements",
        note=f"{held_out.tokens:,} tokens; "
        + (f"rank {index + 1}" if index is not None else f"no rank up to {len(ranks)}")
        + f"; gains {', '.join(f'{100 * gain:.1f}' for gain in gains)} %",
    )


def coverage(base: Path, tuned: Path, adapter: "Adapter", held_out: "HeldOut") -> Limit:
    """How many intervals from a tenth of a text miss the gain on all of it."""
    import torch

    from eckart.evaluation import GainMeter, Gains
    from eckart.operations.truncation import Truncations

    meter = GainMeter(base, tuned, held_out)
    truncations = Truncations.of(adapter, is_ordered=True)
    losses = meter.losses(truncations.at(truncations.uniform(COVERED_RANK)))
    goal, count, generator = meter.gains.gain(losses), len(losses), torch.Generator().manual_seed(0)
    missed, widths = 0, []
    for _ in range(RESAMPLINGS):
        taken = torch.randperm(count, generator=generator)[: count // 10]
        interval = Gains(meter.gains.base[taken], meter.gains.tuned[taken]).interval(losses[taken])
        missed += interval is not None and not interval.lower <= goal <= interval.upper
        widths += [interval.upper - interval.lower] if interval else []
    mean = sum(widths) / max(len(widths), 1)
    return Limit(
        task=f"intervals of the gain of rank {COVERED_RANK} that miss the gain on ten times the text; limit: 10 %",
        value=missed / RESAMPLINGS,
        limit=0.1,
        unit="of resamplings",
        note=f"{RESAMPLINGS} resamplings of {count // 10} of {count} parts, {held_out.tokens:,} tokens; "
        f"gain {goal:.1%}; {len(widths)} intervals, mean width {mean:.1%}",
    )
