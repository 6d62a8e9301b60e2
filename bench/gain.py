"""Whether a rank chosen by its gain is the one that trying every rank finds, and whether intervals keep what they say.

On the demo's adapter and on a short full fine-tune. Takes half an hour or more, so it runs only when named.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bench.options import Options
from bench.results import Limit

if TYPE_CHECKING:
    from eckart.adapter import Adapter
    from eckart.evaluation import HeldOut

KEEP = (0.95, 0.8)
STEPS = 64  # of full fine-tuning, on sequences of 128 tokens
HELD_OUT_SHARE = 0.3  # of the text that the fine-tune does not see
SMALL_TEXT, LARGE_TEXT = 8, 80  # parts of 256 tokens
RESAMPLINGS = 50
MOST_RANK = 32
COVERED_RANKS = (4, 16)


def run(options: Options) -> list[Limit]:
    """The search on both, and the coverage of the fine-tune's intervals."""
    from eckart.demo.corpus import language_reference
    from eckart.evaluation import load_tokenizer
    from eckart.evaluation.held_out import windows_of
    from eckart.operations import extract

    base, adapter, text = demo_adapter(options.work / "demo")
    tokenizer = load_tokenizer(base)
    rows = search("the demo's adapter", base, adapter, adapter, windows_of(text, tokenizer, length=256))
    base, tuned = fine_tune(options.work / "gain")
    text = "\n\n".join(language_reference(held_out_share=HELD_OUT_SHARE).held_out.values())
    held_out = windows_of(text, tokenizer, length=256)
    adapter = extract(base, tuned, rank=MOST_RANK).adapter
    rows += search(f"{STEPS} steps of full fine-tuning", base, tuned, adapter, first(held_out, SMALL_TEXT))
    return rows + coverage(base, tuned, adapter, first(held_out, LARGE_TEXT))


def demo_adapter(folder: Path) -> "tuple[Path, Adapter, str]":
    """The base, the adapter and the held-out text of `eckart demo`; trained if they are missing."""
    from eckart.demo.base import make_base
    from eckart.demo.learning import learn, quick_settings, write_texts
    from eckart.engine import NoProgress
    from eckart.formats import load_adapter

    base, settings = make_base(folder), quick_settings()
    texts = write_texts(folder, settings, force=False)
    learned = learn(folder, base, texts, settings, force=False, progress=NoProgress())
    return base, load_adapter(learned.folder), texts[1].read_text()


def fine_tune(folder: Path) -> tuple[Path, Path]:
    """Folders of a base and of its full fine-tune on the other part of the text; trained if they are missing."""
    from eckart.demo.base import make_base, write_model
    from eckart.demo.corpus import language_reference
    from eckart.evaluation import load_model, load_tokenizer
    from eckart.training import FinetuneSettings, fast_dtype, finetune, pack_texts

    base, tuned = make_base(folder), folder / "tuned"
    if not tuned.is_dir():
        model, tokenizer = load_model(base), load_tokenizer(base)
        texts = language_reference(held_out_share=HELD_OUT_SHARE).training.values()
        settings = FinetuneSettings(steps=STEPS, learning_rate=1e-4, compute_dtype=fast_dtype())
        finetune(model, pack_texts(texts, tokenizer, length=128), settings)
        write_model(tuned, model, tokenizer, {"steps": STEPS}, force=False)
    return base, tuned


def first(held_out: "HeldOut", parts: int) -> "HeldOut":
    """Some windows of a text, evenly spread."""
    from eckart.evaluation import HeldOut

    step = max(1, len(held_out.sequences) // parts)
    chosen = held_out.sequences[::step][:parts]
    return HeldOut(chosen, chosen)


def search(name: str, base: Path, tuned: "Path | Adapter", adapter: "Adapter", held_out: "HeldOut") -> list[Limit]:
    """How many ranks the search measures, of all; it must find what trying every one finds."""
    from eckart.evaluation import GainMeter
    from eckart.evaluation.search import smallest_sufficient
    from eckart.operations.truncation import Truncations

    meter = GainMeter(base, tuned, held_out)
    truncations = Truncations.of(adapter)
    ranks = [truncations.uniform(rank) for rank in range(1, truncations.highest_rank + 1)]
    gains = [meter.gains.gain(meter.losses(truncations.at(each))) for each in ranks]
    lost = [truncations.lost(each) for each in ranks]
    last = 1.0 if not isinstance(tuned, Path) else None  # the adapter itself, which is not measured
    rows = []
    for keep in KEEP:
        index, measured = smallest_sufficient(lost, gains.__getitem__, keep=keep, last=last)
        every = next((i for i, gain in enumerate(gains) if gain >= keep), None)
        assert index == every, f"the search finds candidate {index}, trying every rank {every}: {gains}"
        found = f"rank {index + 1}" if index is not None else f"no rank up to {len(ranks)}"
        rows.append(
            Limit(
                task=f"{name}: ranks measured to find the smallest that keeps {keep:.0%}; limit: a third of all",
                value=len(measured) - (last is not None),
                limit=len(ranks) / 3,
                unit="measurements",
                note=f"{held_out.tokens:,} tokens; {found}, as by trying every rank; gains "
                f"{', '.join(f'{100 * gain:.1f}' for gain in gains)} %",
            )
        )
    return rows


def coverage(base: Path, tuned: Path, adapter: "Adapter", held_out: "HeldOut") -> list[Limit]:
    """How many intervals from a tenth of a text miss the gain on all of it; a missing interval counts as a miss."""
    import torch

    from eckart.evaluation import GainMeter, Gains
    from eckart.operations.truncation import Truncations

    meter, truncations = GainMeter(base, tuned, held_out), Truncations.of(adapter, is_ordered=True)
    rows = []
    for rank in COVERED_RANKS:
        losses = meter.losses(truncations.at(truncations.uniform(rank)))
        goal, count, generator = meter.gains.gain(losses), len(losses), torch.Generator().manual_seed(0)
        covered, widths = 0, []
        for _ in range(RESAMPLINGS):
            taken = torch.randperm(count, generator=generator)[: count // 10]
            interval = Gains(meter.gains.base[taken], meter.gains.tuned[taken]).interval(losses[taken])
            covered += interval is not None and interval.lower <= goal <= interval.upper
            widths += [interval.upper - interval.lower] if interval else []
        mean = sum(widths) / max(len(widths), 1)
        rows.append(
            Limit(
                task=f"intervals of the gain of rank {rank} that miss the gain on ten times the text; limit: 10 %",
                value=1 - covered / RESAMPLINGS,
                limit=0.1,
                unit="of resamplings",
                note=f"{RESAMPLINGS} resamplings of {count // 10} of {count} parts, {held_out.tokens:,} tokens; "
                f"gain {goal:.1%}; {len(widths)} intervals, mean width {mean:.1%}",
            )
        )
    return rows
