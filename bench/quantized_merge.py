"""How much of what the demo's adapter learned a merge into an NF4 base keeps, and what it costs on other text.

Takes ten minutes or more, so it runs only when named.
"""

import shutil

from bench.options import Options
from bench.results import Limit
from bench.texts import calibration_texts, other_texts, sequences

LEAST_KEPT = 0.9
MOST_LOST = 0.01  # nats per token


def run(options: Options) -> list[Limit]:
    """The losses of a calibrated merge, of a merge to the nearest codes, and of the adapter next to its NF4 base."""
    from eckart.calibration import measure_losses, merge_with_text
    from eckart.checkpoint import open_checkpoint
    from eckart.demo.base import make_base
    from eckart.demo.learning import learn, quick_settings, write_texts
    from eckart.engine import Execution, NoProgress
    from eckart.evaluation import load_tokenizer
    from eckart.operations import plan_merge, quantize
    from eckart.operations.merging.calibrated import calibrated_merge
    from eckart.operations.model_writer.planned import planned

    base, work, execution = make_base(options.pair), options.work, Execution(device="cpu")
    reference = write_texts(work, quick_settings(), force=True)
    adapter = learn(work, base, reference, quick_settings(), force=False, progress=NoProgress()).folder
    quantized = quantize(base, work / "nf4", execution=execution, force=True).output
    files, held_out = calibration_texts(work)
    shutil.rmtree(work / "nf4-merged", ignore_errors=True)
    output = work / "nf4-merged"
    merge_with_text(quantized, adapter, output, files, original=base, execution=execution)
    models = {
        "base": open_checkpoint(quantized),
        "next to it": planned(plan_merge(quantized, adapter, dtype="float32")),
        "nearest": planned(calibrated_merge(plan_merge(quantized, adapter), original=base)),
        "calibrated": open_checkpoint(output),
    }
    tokenizer = load_tokenizer(base)
    own = {"what it learned": reference[1].read_text()}
    kinds = own | {kind: text for kind, text in (held_out | other_texts()).items() if kind != "reference"}
    losses = measure_losses(models, {kind: sequences(text, tokenizer) for kind, text in kinds.items()}).by_model
    learned = {label: losses[label]["what it learned"] for label in models}
    gain = learned["base"] - learned["next to it"]
    worst = max(kinds.keys() - own, key=lambda kind: losses["calibrated"][kind] - losses["nearest"][kind])
    lost = losses["calibrated"][worst] - losses["nearest"][worst]
    return [
        Limit(
            "gain of the demo's adapter next to its NF4 base that a calibrated merge loses",
            1 - (learned["base"] - learned["calibrated"]) / gain,
            1 - LEAST_KEPT,
            "of the gain",
            "nats per token: " + ", ".join(f"{label} {loss:.4f}" for label, loss in learned.items()),
        ),
        Limit(
            f"what it loses to the nearest codes of the 16-bit merge on other text, of which the worst is {worst}",
            lost,
            MOST_LOST,
            "nats per token",
            "; ".join(f"{k}: " + ", ".join(f"{m} {losses[m][k]:.4f}" for m in models) for k in kinds.keys() - own),
        ),
    ]
