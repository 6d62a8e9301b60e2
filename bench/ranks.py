"""Ranks shared over the layers before training, by four rules with one budget: which one trains best?

Every adapter is trained by `eckart.sweep`, so that an interrupted study resumes. Takes hours, so it runs only when
named.
"""

import random
import statistics
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.options import Options
from bench.results import Limit

if TYPE_CHECKING:
    import torch
    from torch import nn

    from eckart.linalg import Spectrum

RANK, ALPHA = 4, 4  # α / √r, so that layers of every rank learn at a like rate
STEPS, LENGTH, BATCH = 30, 128, 4
SEQUENCES = 16  # of training data, for the rules that need data
HELD_OUT_CHARS = 9_000
CODE = ("argparse", "ast", "inspect", "pathlib", "tarfile", "typing", "zipfile", "statistics")


def run(options: Options, *, steps: int = STEPS) -> list[Limit]:
    """Each rule on each text, next to the same rank everywhere; one seed for each of `options.repeats`."""
    from eckart.demo.base import make_base

    folder = options.work / "ranks"
    return list(study(make_base(folder), folder, write_data(folder), seeds=options.repeats, steps=steps))


def study(
    base: Path, folder: Path, texts: dict[str, tuple[Path, Path]], *, seeds: int, steps: int = STEPS
) -> Iterator[Limit]:
    """The held-out loss of every rule on every text; the limit is that of uniform ranks plus two standard errors."""
    from eckart import nn, training

    spectra_of = {"base weights": weights, "EVA's explained variance": inputs, "the gradient": gradients}
    for text, (data, held_out) in texts.items():
        chosen = {"uniform": {}, **{rule: shared(spectra(base, data)) for rule, spectra in spectra_of.items()}}
        uniform: list[float] = []
        for rule, ranks in chosen.items():
            left_out = tuple(name for name, rank in ranks.items() if not rank)
            pattern = {name: rank for name, rank in ranks.items() if rank}
            config = nn.LoRAConfig(rank=RANK, alpha=ALPHA, rslora=True, exclude=left_out, rank_pattern=pattern)
            result = training.sweep(
                base,
                data,
                folder / f"{text} {rule}",
                ranks=(RANK,),
                targets="all-linear",
                seeds=seeds,
                config=config,
                settings=training.TrainSettings(
                    steps=steps, batch_size=BATCH, learning_rate=2e-3, dtype=training.fast_dtype(), eval_every=steps
                ),
                options=training.DataOptions(LENGTH),
                held_out=held_out,
            )
            losses = [cell.loss for cell in result.cells if cell.loss is not None]
            uniform = uniform or losses
            error = statistics.stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else 0.0
            spread = statistics.stdev(uniform) / len(uniform) ** 0.5 if len(uniform) > 1 else 0.0
            given = sorted(ranks.values()) or [RANK]
            yield Limit(
                task=f"loss on {text}, ranks by {rule}; limit: uniform ranks plus two standard errors",
                value=statistics.fmean(losses),
                limit=statistics.fmean(uniform) + 2 * spread,
                unit="nats per token",
                note=f"{steps} steps of {BATCH}×{LENGTH} tokens; {len(losses)} seeds, standard error {error:.4f}; "
                f"{result.cells[0].params:,} parameters; ranks {given[0]}–{given[-1]}, "
                f"median {given[len(given) // 2]}, {len(left_out)} layers left out; "
                f"{result.base_loss:.4f} without an adapter",
            )


def write_data(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Training and held-out data of three kinds, that every Python has or that are made up here."""
    from eckart.demo.corpus import language_reference

    reference = language_reference()
    library = Path(sysconfig.get_path("stdlib"))
    code = [(library / f"{name}.py").read_text() for name in CODE]
    drawn = random.Random(0)
    sums = [f"{a} + {b} = {a + b}\n" for a, b in ((drawn.randrange(1000), drawn.randrange(1000)) for _ in range(9000))]
    texts = {
        "reference": ("\n\n".join(reference.training.values()), "\n\n".join(reference.held_out.values())),
        "code": ("\n\n".join(code[:-1]), code[-1]),
        "sums": ("".join(sums[:-500]), "".join(sums[-500:])),
    }
    paths = {}
    for name, parts in texts.items():
        paths[name] = folder / f"{name}-training.txt", folder / f"{name}-heldout.txt"
        for path, part in zip(paths[name], (parts[0], parts[1][:HELD_OUT_CHARS]), strict=True):
            path.write_text(part)
    return paths


def shared(spectra: "dict[str, Spectrum]") -> dict[str, int]:
    """The rank of each layer, which together cost as much as the same rank everywhere."""
    from eckart.training.rank_file import share_parameters

    return share_parameters(spectra, RANK).ranks


def weights(base: Path, _: Path) -> "dict[str, Spectrum]":
    """The spectra of the base weights."""
    model = loaded(base)
    return {name: spectrum(layer.weight.detach()) for name, layer in layers(model).items()}


def inputs(base: Path, data: Path) -> "dict[str, Spectrum]":
    """The principal components of each layer's inputs, as shares of their variance.

    Paischer et al. (2024), "One initialization to rule them all: fine-tuning via explained variance adaptation".
    """
    import torch

    model, sums = loaded(base), {}

    def add(name: str) -> Callable[..., None]:
        def hook(_: "nn.Module", given: "tuple[torch.Tensor, ...]") -> None:
            rows = given[0].detach().flatten(0, -2).double()
            sums[name] = sums.get(name, 0) + rows.T @ rows

        return hook

    modules = layers(model)
    for name, module in modules.items():
        module.register_forward_pre_hook(add(name))
    with torch.no_grad():
        for ids in sequences(base, data):
            model(input_ids=ids[None])
    found = {}
    for name, module in modules.items():
        values = torch.linalg.eigvalsh(sums.pop(name)).flip(0).clamp_min(0)
        found[name] = of_values((values / values.sum()).sqrt(), module.weight.shape)
    return found


def gradients(base: Path, data: Path) -> "dict[str, Spectrum]":
    """The spectra of the gradients of the weights."""
    model = loaded(base)
    for ids in sequences(base, data):
        model(input_ids=ids[None], labels=ids[None]).loss.backward()
    return {name: spectrum(layer.weight.grad) for name, layer in layers(model).items()}


def loaded(base: Path) -> "nn.Module":
    """The model in float32."""
    from eckart.evaluation import load_model

    return load_model(base)


def layers(model: "nn.Module") -> "dict[str, nn.Linear]":
    """The linear layers but the output layer."""
    from torch import nn

    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, nn.Linear) and name != "lm_head"}


def sequences(base: Path, data: Path) -> "torch.Tensor":
    """Some training sequences, evenly spread."""
    from eckart.evaluation import load_tokenizer
    from eckart.training import pack_texts

    ids = pack_texts([data.read_text()], load_tokenizer(base), length=LENGTH)
    return ids[:: max(1, len(ids) // SEQUENCES)][:SEQUENCES]


def spectrum(matrix: "torch.Tensor") -> "Spectrum":
    """The complete spectrum of a matrix."""
    import torch

    return of_values(torch.linalg.svdvals(matrix.float()).double(), matrix.shape)


def of_values(values: "torch.Tensor", shape: "torch.Size") -> "Spectrum":
    """A spectrum of as many values as a matrix has."""
    from eckart.linalg import Spectrum

    values = values[: min(shape)]
    return Spectrum(values, tuple(shape), float(values.norm()))
