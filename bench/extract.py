"""A rank-32 adapter from a real fine-tune, whole process: mergekit-extract-lora beside `eckart extract`."""

from dataclasses import dataclass
from pathlib import Path

from bench.files import adapter_updates, fingerprint, readers
from bench.options import Options, script
from bench.pair import get_pair
from bench.reference import spectra, squared_tail
from bench.results import Comparison
from bench.timing import alternate, median_seconds, peak_rss_bytes, run_process

RANK = 32
RATIO = 9.0
LEFT_OUT = ("embed_tokens", "lm_head", "norm")  # mergekit would write these at full rank


def run(options: Options) -> list[Comparison]:
    base, tuned = get_pair(options.pair)
    theirs, ours = options.work / "extract-mergekit", options.work / "extract-eckart"

    def mergekit():
        excluded = [part for name in LEFT_OUT for part in ("-e", name)]
        folders = ["--model", tuned, "--base-model", base, "--out-path", theirs]
        return run_process(script("mergekit-extract-lora"), *folders, "--max-rank", str(RANK), *excluded)

    def eckart():
        return run_process(
            script("eckart"),
            "extract",
            base,
            tuned,
            "-o",
            ours,
            "--rank",
            str(RANK),
            "--force",
            "--no-resume",
        )

    eckart()  # compiled modules and both checkpoints are in the page cache from here on
    runs = alternate({"mergekit": mergekit, "eckart": eckart}, repeats=options.repeats)
    modules = sorted(adapter_updates(theirs).keys() & adapter_updates(ours).keys())
    peer_error, error = (judge(folder, base, tuned, modules, options.work) for folder in (theirs, ours))
    seconds, peer_seconds = median_seconds(runs["eckart"]), median_seconds(runs["mergekit"])
    covered = (len(adapter_updates(folder)) for folder in (theirs, ours))
    counts = "mergekit wrote {} matrices, eckart {}".format(*covered)
    return [
        Comparison(
            task=f"extract rank {RANK} from SmolLM2-135M, whole process",
            peer="mergekit-extract-lora",
            seconds=seconds,
            peer_seconds=peer_seconds,
            target=f"≥ {RATIO:g}×",
            met=peer_seconds / seconds >= RATIO,
            measure="squared error over the optimum's, minus 1",
            error=error.excess,
            peer_error=peer_error.excess,
            peak_rss_bytes=peak_rss_bytes(runs["eckart"]),
            peer_peak_rss_bytes=peak_rss_bytes(runs["mergekit"]),
            note=f"{len(modules)} matrices compared ({counts}); worst matrix: mergekit {peer_error.worst:.1e}, "
            f"eckart {error.worst:.1e}",
        )
    ]


@dataclass(frozen=True)
class Excess:
    """Squared Frobenius error beyond that of the best approximation, relative to it: all matrices, and the worst."""

    excess: float
    worst: float


def judge(adapter: Path, base: Path, tuned: Path, modules: list[str], work: Path) -> Excess:
    """How much an adapter loses against the optimum of its rank, on the difference of two checkpoints."""
    before, after, updates = readers(base), readers(tuned), adapter_updates(adapter)

    def difference(module: str):
        name = f"{module}.weight"
        return lambda: after[name]().double() - before[name]().double()

    differences = {module: difference(module) for module in modules}
    exact = spectra(differences, work / f"difference-{fingerprint(base, tuned)}.npz")
    errors = [float((differences[module]() - updates[module]()).square().sum()) for module in modules]
    optima = [squared_tail(exact[module], RANK) for module in modules]
    worst = max(error / optimum for error, optimum in zip(errors, optima, strict=True))
    return Excess(sum(errors) / sum(optima) - 1, worst - 1)
