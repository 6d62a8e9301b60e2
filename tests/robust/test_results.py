"""Result files from strangers: wrong types, sizes without values and numbers that are not finite are refused."""

import copy
import json
import resource

import pytest

from eckart.errors import EckartError
from eckart.report.page import read_results
from eckart.report.page.page import page_html

from .inputs import RESULTS


def write(folder, file, content):
    folder.mkdir()
    (folder / file).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("file", RESULTS)
def test_the_results_that_are_damaged_below_are_shown_unharmed(file, tmp_path):
    assert "<html" in page_html(read_results([write(tmp_path / "in", file, RESULTS[file])]))


TAIL = {"energy_upper": [0.0, 1.0, 2.0], "norm": 1.0, "rounding": 0.0, "failure_probability": 0.0}
PARTIAL = {"name": "q", "dtype": "float32", "fro_norm": 2.0, "singular_values": [1.0, 1.0], "noise": None, "tail": TAIL}
DAMAGE = [
    ("analysis.json", "matrices.0", PARTIAL | {"shape": [10**9, 10**9]}, "shapes declare 1,000,000"),
    (
        "analysis.json",
        "matrices",
        [PARTIAL | {"name": str(i), "shape": [1000, 2000]} for i in range(17_000)],
        "declare",
    ),
    ("analysis.json", "matrices.0.shape", [3], "matrices.0.shape"),
    ("analysis.json", "matrices.0.singular_values", [[1.0]], "singular_values.0"),
    ("analysis.json", "matrices.0.singular_values", [1.0] * 9, "more singular values than"),
    ("analysis.json", "matrices.0.fro_norm", float("nan"), "fro_norm should be a finite"),
    ("analysis.json", "matrices.0.dtype", 5, "dtype"),
    ("analysis.json", "matrices.0.name", None, "name"),
    ("analysis.json", "kind", "constructor", "kind"),
    ("train.json", "losses.loss", {"0": 1}, "losses.loss"),
    ("train.json", "steps", 10**30, "steps"),
    ("train.json", "run", "none", "run"),
    ("dynamics.json", "layers.0.rank", 10**9, "more than 4,194,304 ranks"),
    ("dynamics.json", "layers.0.norm", ["0", 1.0], "norm.0"),
    ("dynamics.json", "steps", [0], "one entry for each"),
    ("sweep.json", "cells.0.loss", "low", "cells.0.loss"),
    ("sweep.json", "sweet_spot", [], "sweet_spot"),
    ("extract.json", "layers.0.shape", "8x6", "layers.0.shape"),
    ("extract.json", "error", True, "error"),
    ("resize.json", "layers.0.rank", -1, "layers.0.rank"),
    ("resize.json", "gain.curve.0.interval", 0.5, "interval"),
    ("comparison.json", "kind", "others", "kind"),
    ("comparison.json", "matrices.0.outputs", {"phi": [], "chance": []}, "damaged"),
    ("comparison.json", "unpaired", [7], "unpaired.0"),
]


def test_a_few_values_of_a_huge_matrix_take_no_more_memory_than_of_a_small_one(tmp_path):
    content = copy.deepcopy(RESULTS["analysis.json"])
    content["matrices"][0]["shape"] = [2**31 - 1, 2**31 - 1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "<html" in page_html(read_results([write(tmp_path / "in", "analysis.json", content)]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(("file", "place", "value", "said"), DAMAGE)
def test_a_damaged_field_is_refused_by_name_before_anything_large_is_allocated(file, place, value, said, tmp_path):
    content = copy.deepcopy(RESULTS[file])
    *above, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target = content
    for part in above:
        target = target[part]
    target[last] = value
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EckartError, match=said):
        page_html(read_results([write(tmp_path / "in", file, content)]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
