"""Which rank, on which modules? The same training for every combination and seed, and the sweet spot.

Every cell is one `train`: its adapter, `train.json` and `dynamics.json` are in `OUT/cells`. An interrupted sweep
resumes with the missing cells, and one with more ranks, targets or seeds keeps the cells that are there. A cell whose
loss becomes NaN or Inf is a result too, and is recorded as failed.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eckart.checkpoint.output import refusing_full_disk
from eckart.checkpoint.source import local_paths
from eckart.engine.progress import NoProgress, Progress
from eckart.errors import MismatchError, OptionError
from eckart.nn import LoRAConfig
from eckart.result import Finish
from eckart.training.data import DataOptions
from eckart.training.health import DivergenceError
from eckart.training.interruption import TrainingInterrupted
from eckart.training.records import find_files
from eckart.training.settings import TrainSettings
from eckart.training.sweep_cell import CellJob, RunCell, labelled, train_apart
from eckart.training.sweep_folder import CELLS, cell_name, finished_cell, record_failure, sweep_folder, write_result
from eckart.training.sweep_grid import SweepGrid, check_cells
from eckart.training.sweep_result import Sweep, SweepCell


def sweep(
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    ranks: Sequence[int] = (4, 8, 16),
    targets: str | Sequence[str] = ("attention", "all-linear"),
    seeds: int | Sequence[int] = 1,
    config: LoRAConfig | None = None,
    settings: TrainSettings | None = None,
    options: DataOptions | None = None,
    held_out: str | Path | None = None,
    resume: bool = True,
    force: bool = False,
    run_cell: RunCell = train_apart,
    finish: Finish[Sweep] | None = None,
    progress: Progress = NoProgress(),
) -> Sweep:
    """Train every combination of rank, target and seed, each in a process of its own.

    Args:
        model: SOURCE of a causal language model.
        data: what `load_data` takes, by its name.
        output: folder for the cells and `sweep.json`; without it nothing is kept but the result.
        ranks: ranks to try.
        targets: targets to try: patterns or presets; `+` joins several into one target, as in `q_proj+v_proj`.
        seeds: trainings per setting, with the seed of `settings` and those after it, or the seeds themselves; three or
            more give an estimate of the noise.
        config: the adapters; rank and target are replaced, and alpha / rank stays the same at every rank.
        settings: settings of every training, except its seed.
        options: how data become sequences; all cells have the same held-out data.
        held_out: separate data for the losses.
        resume: keep the finished cells of a sweep with the same settings in `output`; False starts over.
        force: replace the sweep in `output`.
        run_cell: trains a cell; `train_here` does it in this process, whose peak memory then includes earlier cells.
        finish: called with the result and a folder that contains `sweep.json`; files that it adds appear in `output`.
        progress: receives the progress of every training.

    Raises:
        MismatchError, OptionError, SourceError: a cell cannot be trained (all are checked before the first one), or the
            sweep in `output` has different settings.
        OutputError: `output` is not a sweep.
        EckartError: a training was refused; the cells before it are kept.
        TrainingInterrupted: Ctrl-C came; the cells before it are kept.
    """
    for name, source in (("model", model), ("data", data)):
        if not isinstance(source, str | Path):
            msg = f"`{name}` must be a SOURCE, since every training has its own process; got a {type(source).__name__}"
            raise OptionError(msg)
    config, settings, start = config or LoRAConfig(), settings or TrainSettings(), time.perf_counter()
    grid = SweepGrid(
        tuple(ranks),
        (targets,) if isinstance(targets, str) else tuple(targets),
        tuple(range(settings.seed, settings.seed + seeds)) if isinstance(seeds, int) else tuple(seeds),
        config.alpha / config.rank,
    )
    inputs = local_paths(model, data, held_out)
    for source in (data, held_out):
        if source is not None:
            find_files(source)  # a cell would refuse it too, but only after its imports
    check_cells(model, grid, config)
    with _folder(output) as folder, refusing_full_disk(folder, "finished cells are kept"):
        job = CellJob(
            str(model),
            str(data),
            None if held_out is None else str(held_out),
            config,
            settings,
            options,
            str(folder / CELLS),
        )
        shared = _shared_settings(job, grid)
        with sweep_folder(folder, shared, resume=resume, force=force, inputs=inputs):
            cells = _train_cells(job, grid, run_cell, progress)
            result = _result(shared, grid, cells, time.perf_counter() - start)
            write_result(folder, result, finish)
    return result


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path]:
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="eckart-sweep-") as temporary:
        yield Path(temporary) / "sweep"


def _shared_settings(job: CellJob, grid: SweepGrid) -> dict[str, Any]:
    """What is the same in all cells, as JSON returns it."""
    varied = {"config": ("rank", "alpha", "target"), "settings": ("seed", "save_every")}
    shared = {key: value for key, value in asdict(job).items() if key != "output"}
    for key, fields in varied.items():
        shared[key] = {name: value for name, value in shared[key].items() if name not in fields}
    return json.loads(json.dumps(shared | {"alpha_per_rank": grid.alpha_per_rank}))


def _train_cells(job: CellJob, grid: SweepGrid, run_cell: RunCell, progress: Progress) -> list[dict[str, Any]]:
    """The result of every cell, trained now or before; `job` has the settings that all share, and their folder."""
    folder, cells = Path(job.output), []
    for index, (rank, target, seed) in enumerate(grid.keys):
        name = cell_name(rank, target, seed)
        content = finished_cell(folder / name)
        if content is None:
            cell = replace(
                job,
                config=grid.config(job.config, rank, target),
                settings=replace(job.settings, seed=seed),
                output=str(folder / name),
            )
            try:
                content = run_cell(cell, labelled(progress, f"{index + 1}/{len(grid.keys)} {name}"))
            except DivergenceError as error:
                progress.note(f"{name}: {error}")
                content = record_failure(folder / name, str(error))
            except KeyboardInterrupt:
                saved = f"{index} of {len(grid.keys)} cells are kept in {folder}"
                msg = f"the sweep was interrupted; {saved}; run the same again to resume"
                raise TrainingInterrupted(msg) from None
        cells.append(content)
        _check_same_inputs(folder, cells)
    return cells


def _check_same_inputs(folder: Path, cells: Sequence[dict[str, Any]]) -> None:
    runs = [content["run"] for content in cells if "run" in content]
    for key, name in (("data", "data are"), ("model_files", "files of the model are")):
        if len({run.get(key) for run in runs}) > 1:
            msg = f"the {name} not those that the cells in {folder} were trained on; `force` starts over"
            raise MismatchError(msg)


def _result(shared: dict[str, Any], grid: SweepGrid, cells: Sequence[dict[str, Any]], seconds: float) -> Sweep:
    trained = [content for content in cells if "error" not in content]
    return Sweep(
        shared,
        [_cell(key, content) for key, content in zip(grid.keys, cells, strict=True)],
        trained[0]["heldout_loss_before"] if trained else None,
        trained[0]["heldout_tokens"] if trained else None,
        seconds,
    )


def _cell(key: tuple[int, str, int], content: dict[str, Any]) -> SweepCell:
    if "error" in content:
        return SweepCell(*key, None, None, None, None, content["error"])
    loss, params = content["heldout_loss_after"], content["trainable_params"]
    return SweepCell(*key, loss, params, content["seconds"], content["peak_bytes"])
