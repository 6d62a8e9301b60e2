"""Sizes in `analysis.json`, checked against the singular values that are there."""

from typing import Any

MOST_UNKNOWN = 2**22  # singular values that shapes may declare beyond those in the file,
MOST_UNKNOWN_PER_VALUE = 2**14  # and as many for each of those: partial spectra and adapters have few
MOST_DECLARED = 2**26


def size_fault(content: dict[str, Any]) -> str | None:
    """Which sizes do not fit the values in the file; what is computed from it takes memory by its sizes."""
    faults = [fault for matrix in content["matrices"] if (fault := _matrix_fault(matrix))]
    names = [matrix["name"] for matrix in content["matrices"]]
    if len(set(names)) < len(names):
        faults.append("it has two matrices of one name")
    values = sum(len(matrix["singular_values"]) for matrix in content["matrices"])
    declared = sum(min(matrix["shape"]) for matrix in content["matrices"])
    if declared > min(MOST_DECLARED, MOST_UNKNOWN + MOST_UNKNOWN_PER_VALUE * values):
        faults.append(f"its shapes declare {declared:,} singular values, and it has {values:,}")
    return faults[0] if faults else None


def _matrix_fault(matrix: dict[str, Any]) -> str | None:
    values, tail = matrix["singular_values"], matrix.get("tail")
    rules = (
        (len(values) > min(matrix["shape"]), f"more singular values than its shape {matrix['shape']} allows"),
        (matrix["fro_norm"] < 0 or any(value < 0 for value in values), "a negative norm or singular value"),
        (matrix["fro_norm"] > 0 and not any(values), f"the norm {matrix['fro_norm']:g} without a singular value"),
        (tail and (not values or len(tail["energy_upper"]) != len(values) + 1), "limits for other singular values"),
    )
    return next((f"{matrix['name'][:60]} has {fault}" for applies, fault in rules if applies), None)
