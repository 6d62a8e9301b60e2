"""Which rank, on which modules? The same training for every combination, seed by seed, and the sweet spot.

Every cell is what `eckart train` makes of it: its adapter, `train.json` and `dynamics.json` lie in `OUT/cells`. A sweep
that was stopped goes on with the cells that are missing, and one that is asked for more ranks, targets or seeds keeps
those it has. A cell whose loss stops being a number is a result too, and is kept as failed.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eckart.checkpoint import atomic_file
from eckart.errors import MismatchError
from eckart.nn import LoRAConfig
from eckart.training.data import DataOptions
from eckart.training.health import DivergenceError
from eckart.training.settings import TrainSettings
from eckart.training.sweep_cell import CellJob, RunCell, train_apart
from eckart.training.sweep_folder import CELLS, cell_name, keep_failure, kept_cell, opened
from eckart.training.sweep_grid import SweepGrid, check_cells
from eckart.training.sweep_result import RESULT_FILE, Sweep, SweepCell
from eckart.training.watching import SilentWatcher, TrainingInterrupted, Watcher


def sweep(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    grid: SweepGrid | None = None,
    config: LoRAConfig | None = None,
    settings: TrainSettings | None = None,
    options: DataOptions | None = None,
    held_out: str | Path | None = None,
    force: bool = False,
    run_cell: RunCell = train_apart,
    watcher: Watcher | None = None,
) -> Sweep:
    """Train every combination of rank, target and seed, each in a process of its own.

    Args:
        model: SOURCE of a causal language model.
        data: what `load_data` takes, by its name.
        output: folder of the cells and of `sweep.json`; if it holds cells of the same settings, these are kept.
        grid: what is varied.
        config: of the adapters, without rank, alpha and target.
        settings: of every training, without its seed.
        options: how data become sequences; what is held out is the same for all cells.
        held_out: data of its own to measure the loss on.
        force: throw away the sweep that `output` holds, and start over.
        run_cell: trains a cell; `train_here` does it in this process, whose peak memory then only ever grows.
        watcher: told of the progress.

    Raises:
        MismatchError, OptionError, SourceError: a cell cannot be trained; all are checked before the first one is.
        OutputError: `output` is no sweep, or one of other settings.
        EckartError: a training was refused; the cells before it are kept.
        TrainingInterrupted: Ctrl-C came; the cells before it are kept.
    """
    grid, watcher, folder, start = grid or SweepGrid(), watcher or SilentWatcher(), Path(output), time.perf_counter()
    job = CellJob(
        str(model),
        str(data),
        None if held_out is None else str(held_out),
        config or LoRAConfig(),
        settings or TrainSettings(),
        options,
        str(folder / CELLS),
    )
    about = _about(job, grid)
    check_cells(model, grid, job.config)
    keys = [(rank, target, seed) for seed in grid.seeds for target in grid.targets for rank in grid.ranks]
    with opened(folder, about, force=force):
        found: list[dict[str, Any]] = []
        for place, (rank, target, seed) in enumerate(keys):
            name = cell_name(rank, target, seed)
            kept = kept_cell(folder, name)
            if kept is None:
                cell = replace(
                    job,
                    config=grid.config(job.config, rank, target),
                    settings=replace(job.settings, seed=seed),
                    output=str(folder / CELLS / name),
                )
                named = _Cell(watcher, f"{place + 1}/{len(keys)} {name}")
                kept = _train(cell, run_cell, named, done=place, total=len(keys))
            found.append(kept)
            _check_same_data(folder, found)
        done = [content for content in found if "error" not in content]
        result = Sweep(
            about,
            [_cell(key, content) for key, content in zip(keys, found, strict=True)],
            done[0]["heldout_loss_before"] if done else None,
            done[0]["heldout_tokens"] if done else None,
            time.perf_counter() - start,
        )
        with atomic_file(folder / RESULT_FILE, force=True) as partial:
            partial.write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return result


def _about(job: CellJob, grid: SweepGrid) -> dict[str, Any]:
    """What is the same in all cells, as JSON gives it back."""
    varied = {"config": ("rank", "alpha", "target"), "settings": ("seed", "save_every")}
    about = {key: value for key, value in asdict(job).items() if key != "output"}
    for part, fields in varied.items():
        about[part] = {key: value for key, value in about[part].items() if key not in fields}
    return json.loads(json.dumps(about | {"alpha_per_rank": grid.alpha_per_rank}))


def _train(job: CellJob, run_cell: RunCell, watcher: Watcher, *, done: int, total: int) -> dict[str, Any]:
    """The result of a cell, or why its loss is no number, which is kept too."""
    try:
        return run_cell(job, watcher)
    except DivergenceError as error:
        watcher.note(str(error))
        return keep_failure(Path(job.output), str(error))
    except KeyboardInterrupt:
        kept = f"{done} of {total} cells are kept in {Path(job.output).parent}"
        msg = f"the sweep was stopped; {kept}: the same command goes on"
        raise TrainingInterrupted(msg) from None


def _check_same_data(folder: Path, found: Sequence[dict[str, Any]]) -> None:
    if len({content["run"]["data"] for content in found if "run" in content}) > 1:
        msg = f"the data are not those that the cells kept in {folder} were trained on; --force starts over"
        raise MismatchError(msg)


def _cell(key: tuple[int, str, int], content: dict[str, Any]) -> SweepCell:
    if "error" in content:
        return SweepCell(*key, None, None, None, None, content["error"])
    loss, params = content["heldout_loss_after"], content["trainable_params"]
    return SweepCell(*key, loss, params, content["seconds"], content["peak_bytes"])


class _Cell:
    """Passes on what is told, with the cell it is told of."""

    def __init__(self, watcher: Watcher, name: str) -> None:
        self._watcher, self._name = watcher, name

    def at(self, stage: str, done: int, total: int, loss: float | None = None) -> None:
        """Pass it on."""
        self._watcher.at(f"{self._name}: {stage}", done, total, loss)

    def note(self, message: str) -> None:
        """Pass it on."""
        self._watcher.note(f"{self._name}: {message}")
