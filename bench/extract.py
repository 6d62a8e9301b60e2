"""A rank-32 adapter from a real fine-tune, whole process: mergekit-extract-lora and `eckart extract`."""

from dataclasses import dataclass
from pathlib import Path

from bench.files import adapter_updates, fingerprint, readers
from bench.options import Options, script
from bench.pair import get_pair
from bench.reference import spectra, squared_tail
from bench.results import Comparison, Side
from bench.timing import Run, alternate, run_process

RANK = 32
RATIO = 9.0
EXCLUDED = ("embed_tokens", "lm_head", "norm")  # mergekit would write these at full rank


def run(options: Options) -> list[Comparison]:
    base, tuned = get_pair(options.pair)
    folders = {"mergekit": options.work / "extract-mergekit", "eckart": options.work / "extract-eckart"}

    def mergekit() -> Run:
        excluded = [part for name in EXCLUDED for part in ("-e", name)]
        models = ["--model", tuned, "--base-model", base, "--out-path", folders["mergekit"]]
        return run_process(script("mergekit-extract-lora"), *models, "--max-rank", str(RANK), *excluded)

    def eckart() -> Run:
        arguments = ["-o", folders["eckart"], "--rank", str(RANK), "--force", "--no-resume"]
        return run_process(script("eckart"), "extract", base, tuned, *arguments)

    eckart()  # fills the page cache with compiled modules and both checkpoints
    runs = alternate({"mergekit": mergekit, "eckart": eckart}, repeats=options.repeats)
    covered = {name: adapter_updates(folder).keys() for name, folder in folders.items()}
    common = sorted(covered["mergekit"] & covered["eckart"])
    excess = {name: judge(folder, base, tuned, common, options.work) for name, folder in folders.items()}
    ours, theirs = (Side.of(runs[name], error=excess[name].excess) for name in ("eckart", "mergekit"))
    return [
        Comparison(
            task=f"extract rank {RANK} from SmolLM2-135M, whole process",
            peer="mergekit-extract-lora",
            ours=ours,
            theirs=theirs,
            target=f"≥ {RATIO:g}×",
            met=theirs.seconds >= RATIO * ours.seconds,
            measure="squared error divided by the optimum's, minus 1",
            note=f"{len(common)} matrices compared (mergekit wrote {len(covered['mergekit'])}, "
            f"eckart {len(covered['eckart'])}); worst matrix: mergekit {excess['mergekit'].worst:.1e}, "
            f"eckart {excess['eckart'].worst:.1e}",
        )
    ]


@dataclass(frozen=True)
class Excess:
    """Squared Frobenius error beyond that of the best approximation, relative to it: all matrices, and the worst."""

    excess: float
    worst: float


def judge(adapter: Path, base: Path, tuned: Path, modules: list[str], work: Path) -> Excess:
    """The error of an adapter beyond the optimum of its rank, on the difference of two checkpoints."""
    before, after, updates = readers(base), readers(tuned), adapter_updates(adapter)

    def difference(module: str):
        name = f"{module}.weight"
        return lambda: after[name]().double() - before[name]().double()

    differences = {module: difference(module) for module in modules}
    exact = spectra(differences, work / f"difference-{fingerprint(base, tuned)}.pt")
    errors = [float((differences[module]() - updates[module]()).square().sum()) for module in modules]
    optima = [squared_tail(exact[module], RANK) for module in modules]
    worst = max(error / optimum for error, optimum in zip(errors, optima, strict=True))
    return Excess(sum(errors) / sum(optima) - 1, worst - 1)
