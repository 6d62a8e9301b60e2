"""How many ranks 40 steps of distillation are worth, on text that neither the fine-tune nor the distillation has seen.

Takes ten minutes or more, so it runs only when named.
"""

from dataclasses import replace

from bench.options import Options
from bench.pair import get_pair
from bench.results import Limit

RANKS = (1, 2, 4, 8, 12, 16)
DISTILLED_RANK, EQUAL_RANK = 2, 12
HELD_OUT_CHARS = 20_000


def run(options: Options) -> list[Limit]:
    """The loss with a distilled adapter, compared with a plain truncation of six times its rank."""
    from eckart.demo.corpus import language_reference
    from eckart.demo.learning import excerpt
    from eckart.evaluation import measure_gains
    from eckart.operations import extract
    from eckart.training import Distillation, fast_dtype
    from eckart.training.distiller import SHORT

    base, tuned = (str(folder) for folder in get_pair(options.pair))
    text = language_reference()
    training, held_out = "\n\n".join(text.training.values()), excerpt(text, HELD_OUT_CHARS)
    distillation = Distillation(base, tuned, training, replace(SHORT, compute_dtype=fast_dtype()))
    adapters = {f"rank {rank}": extract(base, tuned, rank=rank).adapter for rank in RANKS}
    adapters["distilled"] = extract(base, tuned, rank=DISTILLED_RANK, refine=distillation).adapter
    gains = measure_gains(base, tuned, adapters, held_out)
    recovered = ", ".join(f"{name} {gain.gain_recovered:.1%}" for name, gain in gains.items())
    distilled, plain, result = gains["distilled"], gains[f"rank {EQUAL_RANK}"], distillation.result
    assert result is not None
    assert result.after is not None
    return [
        Limit(
            task=f"loss of SmolLM2-135M with a rank-{DISTILLED_RANK} adapter distilled for {SHORT.steps} steps; "
            f"limit: a plain one of rank {EQUAL_RANK}",
            value=distilled.adapter_loss,
            limit=plain.adapter_loss,
            unit="nats per token",
            note=f"{distilled.tokens:,} tokens; base {distilled.base_loss:.4f}, fine-tune {distilled.tuned_loss:.4f}; "
            f"gain recovered: {recovered}; KL on the held-out part of the distillation text {result.before.kl:.4f} → "
            f"{result.after.kl:.4f}; {result.seconds:.0f} s",
        )
    ]
