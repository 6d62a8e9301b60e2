"""How much of what NF4 costs calibrated codes and a correction repair, on three kinds of text and on others.

Takes ten minutes or more, so it runs only when named.
"""

import shutil
from collections.abc import Iterable, Mapping

from bench.options import Options, script
from bench.results import Limit
from bench.texts import calibration_texts, other_texts, sequences
from bench.timing import run_process

RANK = 8
MOST_SECONDS = 240
WRITTEN = ("nearest", "codes", "corrected")


def run(options: Options) -> list[Limit]:
    """The share of the gap between NF4 and bfloat16 that `quantize --calibrate --correct` closes."""
    from eckart.calibration import measure_losses
    from eckart.checkpoint import open_checkpoint
    from eckart.demo.base import make_base
    from eckart.evaluation import load_tokenizer
    from eckart.operations import plan_merge, plan_quantize
    from eckart.operations.model_writer.planned import planned

    base, output = make_base(options.pair), options.work / "nf4-repaired"
    files, held_out = calibration_texts(options.work)
    shutil.rmtree(output, ignore_errors=True)
    command = [
        script("eckart"),
        "quantize",
        base,
        "-o",
        output,
        "--double",
        "--correct",
        str(RANK),
        "--json",
    ]
    measured = run_process(*command, *(part for file in files for part in ("--calibrate", file)))
    models = {
        "bfloat16": open_checkpoint(base),
        "nearest": planned(plan_quantize(base, double=True)),
        "codes": open_checkpoint(output),
        "corrected": planned(plan_merge(output, output / "correction", dtype="float32")),
    }
    tokenizer, others = load_tokenizer(base), other_texts()
    texts = {kind: sequences(text, tokenizer) for kind, text in (held_out | others).items()}
    losses = measure_losses(models, texts).by_model
    note = f"{len(files)} kinds to calibrate with; " + "; ".join(
        f"{kind}: bfloat16 {losses['bfloat16'][kind]:.4f}, "
        + ", ".join(f"{label} {losses[label][kind]:.4f} ({_closed(losses, label, [kind]):.0%})" for label in WRITTEN)
        for kind in texts
    )
    task = f"gap to bfloat16 that codes and a correction of rank {RANK} in NF4 leave on text of"
    worst = max(losses["corrected"][kind] - losses["nearest"][kind] for kind in texts)
    return [
        Limit(f"{task} the calibration's kinds", 1 - _closed(losses, "corrected", held_out), 0.2, "of the gap", note),
        Limit(f"{task} other kinds", 1 - _closed(losses, "corrected", others), 0.35, "of the gap"),
        Limit("loss above that of the nearest codes, on the worst kind", worst, 0.0, "nats per token"),
        Limit("quantization with text and correction", measured.seconds, MOST_SECONDS, "s"),
        Limit("its peak memory", (measured.peak_rss_bytes or 0) / 1e9, 2.5, "GB"),
    ]


def _closed(losses: Mapping[str, Mapping[str, float]], label: str, kinds: Iterable[str]) -> float:
    """The share of the gap between the nearest codes and bfloat16 that a model closes, of the mean over kinds."""
    gap, closed = (sum(losses["nearest"][kind] - losses[best][kind] for kind in kinds) for best in ("bfloat16", label))
    return closed / gap
