"""How much of what NF4 costs a correction repairs, on text of the calibration's kind and of another kind.

Takes ten minutes or more, so it runs only when named.
"""

import sysconfig
import time
from pathlib import Path

from bench.options import Options
from bench.results import Limit

LEAST_CLOSED = {8: (0.75, 0.58), 32: (0.80, 0.68)}  # by rank: of the gap on the same kind of text, and on the other
HELD_OUT_TOKENS, LENGTH = 2048, 512
OTHER_CHARS = 40_000


def run(options: Options) -> list[Limit]:
    """The share of the gap between NF4 and bfloat16 that corrections of several ranks close."""
    from eckart.calibration import collect_moments, measure_losses, read_texts
    from eckart.checkpoint import open_checkpoint
    from eckart.demo.base import make_base
    from eckart.demo.corpus import language_reference
    from eckart.engine import Execution
    from eckart.engine.machine import peak_rss_bytes
    from eckart.evaluation import load_tokenizer
    from eckart.operations import correct, plan_merge, quantize
    from eckart.operations.model_writer.planned import planned

    base, work, execution = make_base(options.pair), options.work, Execution(device="cpu")
    tokenizer, reference = load_tokenizer(base), language_reference()
    (work / "reference.txt").write_text("\n\n".join(reference.training.values()))
    began = time.monotonic()
    text = read_texts([work / "reference.txt"], tokenizer, length=LENGTH)
    moments = collect_moments(open_checkpoint(base), text.kinds, work / "moments.safetensors", force=True)
    quantized = quantize(base, work / "nf4", double=True, execution=execution, force=True).output
    results = {rank: correct(quantized, base, moments=moments, rank=rank, execution=execution) for rank in LEAST_CLOSED}
    seconds = time.monotonic() - began
    texts = {
        "same kind": _sequences("\n\n".join(reference.held_out.values()), tokenizer),
        "other kind": _sequences(_source_code(), tokenizer),
    }
    models = {"original": open_checkpoint(base), "NF4": open_checkpoint(quantized)}
    models |= {
        f"rank {rank}": planned(plan_merge(quantized, result.adapter, dtype="float32"))
        for rank, result in results.items()
    }
    losses = measure_losses(models, texts).by_model
    rows = []
    for rank, least in LEAST_CLOSED.items():
        for kind, limit in zip(texts, least, strict=True):
            gap = losses["NF4"][kind] - losses["original"][kind]
            left = losses[f"rank {rank}"][kind] - losses["original"][kind]
            rows.append(
                Limit(
                    task=f"gap to bfloat16 that a rank-{rank} correction of NF4 leaves on text of the {kind}; "
                    f"limit: {1 - limit:.0%}",
                    value=left / gap,
                    limit=1 - limit,
                    unit="of the gap",
                    note=f"nats per token: bfloat16 {losses['original'][kind]:.4f}, NF4 {losses['NF4'][kind]:.4f}, "
                    f"corrected {losses[f'rank {rank}'][kind]:.4f}; error of the outputs {results[rank].error:.1%}, "
                    f"least possible {results[rank].error_lower_bound:.1%}; {text.tokens:,} calibration tokens of "
                    f"Python's reference; all in {seconds:.0f} s, {peak_rss_bytes() / 1e9:.1f} GB",
                )
            )
    return rows


def _source_code() -> str:
    """Some modules of the standard library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))
    return "\n\n".join(file.read_text(errors="replace")[:4000] for file in files)[:OTHER_CHARS]


def _sequences(text: str, tokenizer):
    import torch

    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:HELD_OUT_TOKENS]
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
