"""A rank for each module: from a JSON object, the output of `eckart plan`, or the spectra of an earlier fine-tune."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.json_files import read_json_object
from eckart.checkpoint.naming import PRESETS, is_embedding, is_suffix, matches
from eckart.errors import FileFormatError, MismatchError, OptionError
from eckart.formats.peft_patterns import RegexBudget
from eckart.linalg import allocate
from eckart.operations.analysis.result import FORMAT as ANALYSIS
from eckart.operations.analysis.result import JSON_NAME, Analysis

if TYPE_CHECKING:
    from eckart.linalg import Allocation, Spectrum
    from eckart.nn.config import LoRAConfig

_LONG_NAME = 200  # characters of a module's name


def with_ranks(config: LoRAConfig, file: str | Path) -> LoRAConfig:
    """An adapter's configuration with the ranks in a file.

    Args:
        config: the adapter; where the file contains spectra, its rank is the number of parameters to distribute.
        file: a JSON object of names or patterns (as in `rank_pattern`) and ranks, where 0 leaves modules out; what
            `eckart plan --analysis … --json` printed; or an `analysis.json`, or its folder, of a fine-tune minus its
            base or of an adapter.

    Raises:
        SourceError, FileFormatError: the file is missing, or is none of these.
        MismatchError: an analysis is of weights, or contains no module that `target` takes.
        OptionError: a rank is not a whole number.
    """
    path = Path(file).expanduser()
    path = path / JSON_NAME if path.is_dir() else path
    content = read_json_object(path)
    if content.get("format") == ANALYSIS:
        ranks: Mapping[str, Any] = share_parameters(_targeted(spectra_of_update(path), config, path), config.rank).ranks
    elif "format" in content:
        advice = content.get("advice")
        ranks = advice.get("ranks") if isinstance(advice, dict) else None  # type: ignore[assignment]
        if not isinstance(ranks, dict):
            msg = f"{path}: no ranks of modules, which a plan with an `analysis` has"
            raise FileFormatError(msg)
    else:
        _refuse(path, map(_regex_fault, content))
        left_out = [name for name, rank in content.items() if rank == 0]
        others = {name: rank for name, rank in content.items() if rank != 0}
        return replace(config, exclude=(*config.exclude, *left_out), rank_pattern=others)
    chosen = {name: rank for name, rank in ranks.items() if rank != 0}
    _refuse(path, (None if is_suffix(name) else f"{name[:60]!r} is no name of a module" for name in chosen))
    if not chosen:
        msg = f"{path}: no module has a rank"
        raise OptionError(msg)
    return replace(config, target=tuple(chosen), exclude=(), rank_pattern=chosen)


def _regex_fault(pattern: str) -> str | None:
    """Why a pattern from a file cannot be used: it is not a regex, or could take minutes to match."""
    try:
        RegexBudget().matches(pattern, "x" * _LONG_NAME)
    except ValueError as fault:
        return str(fault)
    return None


def _refuse(path: Path, faults: Iterable[str | None]) -> None:
    if found := [fault for fault in faults if fault]:
        msg = f"{path}: patterns that cannot be used"
        raise FileFormatError.listing(msg, found)


def spectra_of_update(path: str | Path) -> dict[str, Spectrum]:
    """The spectrum of each module in an analysis of a fine-tune minus its base, or of an adapter.

    Raises:
        SourceError, FileFormatError: there is no such analysis.
        MismatchError: it is of weights, which do not show the rank of an update.
    """
    analysis = Analysis.load(path)
    if analysis.kind == "weights":
        msg = (
            f"{path} contains spectra of weights, which do not show the rank of an update; "
            "analyze a fine-tune minus its base instead (`base`)"
        )
        raise MismatchError(msg)
    return {matrix.name: matrix.spectrum for matrix in analysis.matrices}


def share_parameters(spectra: Mapping[str, Spectrum], rank: int) -> Allocation:
    """As many parameters as one rank takes for all modules, distributed to keep the most energy of their updates."""
    return allocate(spectra, budget_params=rank * sum(sum(spectrum.shape) for spectrum in spectra.values()))


def _targeted(spectra: Mapping[str, Spectrum], config: LoRAConfig, path: Path) -> dict[str, Spectrum]:
    """The spectra of the modules that the configuration adapts."""

    def takes(pattern: str, name: str) -> bool:
        return matches(pattern, name) and not (pattern in PRESETS and is_embedding(name))

    targeted = {
        name: spectrum
        for name, spectrum in spectra.items()
        if "[" not in name
        and any(takes(pattern, name) for pattern in config.target)
        and not any(takes(pattern, name) for pattern in config.exclude)
    }
    if not targeted:
        msg = f"{path}: it contains no module that `target` takes ({', '.join(config.target)})"
        raise MismatchError(msg)
    return targeted
