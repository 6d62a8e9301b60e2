"""The page's data of an analysis: its source, every matrix with its statistics, and the commands."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eckart.linalg.scaling import exponent_of
from eckart.operations import Analysis, MatrixAnalysis, Place
from eckart.report import findings
from eckart.report.page.numbers import Numbers
from eckart.report.page.render import Sections, rendered
from eckart.report.page.spectra import MOST_VALUES, bounds, spectrum_data, values_that_fit
from eckart.report.page.stops import ENERGIES, ERRORS, rank_stops
from eckart.report.page.targets import targets_of

STATISTICS = ("spectral_norm", "stable_rank", "effective_rank", "participation_ratio", "numerical_rank")


def analysis_page(analysis: Analysis, *, title: str) -> str:
    """The page of one analysis."""
    numbers = Numbers()
    return rendered(analysis_sections({title: analysis}, numbers), numbers, title=title)


def analysis_sections(analyses: Mapping[str, Analysis], numbers: Numbers) -> Sections:
    """The page's view of analyses by their titles, all in one unit of norms."""
    matrices = [matrix for analysis in analyses.values() for matrix in analysis.matrices]
    exponent = exponent_of(max((matrix.spectrum.fro_norm for matrix in matrices), default=0.0))
    return {"analyses": [analysis_data(each, title, numbers, exponent=exponent) for title, each in analyses.items()]}


def analysis_data(
    analysis: Analysis, title: str, numbers: Numbers, *, most: int = MOST_VALUES, exponent: int = 0
) -> dict[str, Any]:
    """The page's view of an analysis; its singular values go to `numbers`.

    Args:
        analysis: of weights, a difference or an adapter.
        title: distinguishes it from others on the page.
        numbers: the page's block of numbers.
        most: maximum number of singular values to add to it.
        exponent: norms and singular values are in units of 2^exponent, so that the page can square them.
    """
    if exponent:
        analysis = replace(analysis, matrices=[matrix.shifted(-exponent) for matrix in analysis.matrices])
    values, targets = values_that_fit(analysis.matrices, most), targets_of(analysis)
    where, kinds = analysis.places(), {kind: index for index, kind in enumerate(analysis.by_kind())}
    matrices = [_matrix(matrix, where[matrix.name], kinds, values, numbers) for matrix in analysis.matrices]
    thinned = [entry for entry in matrices if "rest" in entry["spectrum"]]
    unknown = [entry for entry in matrices if "tail" in entry["spectrum"]]
    dense = [entry["spectrum"]["count"] for entry in (*thinned, *unknown)]
    present = max((len(matrix.spectrum.singular_values) for matrix in analysis.matrices), default=1)
    highest = max((_highest_rank(analysis, matrix) for matrix in analysis.matrices), default=1)
    return {
        "title": title,
        "exponent": exponent,
        "kind": analysis.kind,
        "source": analysis.source,
        "base": analysis.base,
        "finding": findings.energy_finding(analysis) if findings.measured(analysis) else "Every matrix is zero",
        "params": analysis.params,
        "kinds": list(kinds),
        "layers": sorted({place.layer for place in where.values()}, key=lambda layer: -1 if layer is None else layer),
        "matrices": matrices,
        "thinned": {"matrices": len(thinned), "values": values, "partial": len(unknown)},
        "skipped": [item.to_json() for item in analysis.skipped],
        "targets": targets,
        "stops": {
            "rank": rank_stops(min(dense, default=present), highest),
            "energy": list(ENERGIES),
            "error": list(ERRORS),
        },
        "gain": None,
        "command": _command(analysis) if analysis.kind == "adapter" or targets["patterns"] else None,
    }


def _matrix(
    matrix: MatrixAnalysis, place: Place, kinds: dict[str, int], values: int | None, numbers: Numbers
) -> dict[str, Any]:
    """One matrix."""
    statistics, noise = matrix.statistics(), matrix.noise
    return {
        "name": matrix.name,
        "kind": kinds[place.kind],
        "layer": place.layer,
        "shape": list(matrix.shape),
        "dtype": matrix.dtype,
        "spectrum": spectrum_data(matrix.spectrum, values, numbers),
        **{name: bounds(statistics[name]) for name in STATISTICS},
        "noise": noise and {"edge": noise.edge, "signal_rank": noise.signal_rank, "regime": noise.regime},
    }


def _highest_rank(analysis: Analysis, matrix: MatrixAnalysis) -> int:
    """The highest useful rank: for a layer of an adapter, the rank of its factors."""
    return len(matrix.spectrum.singular_values) if analysis.kind == "adapter" else min(matrix.shape)


def _command(analysis: Analysis) -> list[str] | None:
    """The command to which the choice of ranks is appended, quoted for a shell; None if no command reads the source."""
    places = [analysis.source] if analysis.base is None else [analysis.base, analysis.source]
    if analysis.kind == "weights" or any(place.startswith("<") for place in places):
        return None
    return ["eckart", "resize" if analysis.kind == "adapter" else "extract", *map(shlex.quote, places)]
