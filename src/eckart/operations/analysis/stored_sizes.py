"""Sizes in `analysis.json`, checked against the singular values that are there."""

from typing import Any

MOST_UNKNOWN = 2**24  # singular values of partial spectra that are not in the file: each takes memory,
MOST_UNKNOWN_PER_VALUE = 2**9  # and so many for each that is: analyze computes 256 of each matrix


def size_fault(content: dict[str, Any]) -> str | None:
    """Which sizes do not fit the values in the file; what is computed from it takes memory by its sizes."""
    faults = [fault for matrix in content["matrices"] if (fault := _matrix_fault(matrix))]
    names = [matrix["name"] for matrix in content["matrices"]]
    if len(set(names)) < len(names):
        faults.append("it has two matrices of one name")
    partial = [matrix for matrix in content["matrices"] if matrix.get("tail")]
    values = sum(len(matrix["singular_values"]) for matrix in partial)
    declared = sum(min(matrix["shape"]) for matrix in partial)
    if declared - values > min(MOST_UNKNOWN, MOST_UNKNOWN_PER_VALUE * values):
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
