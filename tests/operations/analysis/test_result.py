"""An analysis as a value and as files: every field of the format, whole or not at all, and back again."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eckart.errors import FileFormatError, MissingExtraError, OutputError, SourceError
from eckart.operations import Analysis, analyze
from eckart.operations.analysis import work

FIELDS = [
    *("name", "shape", "dtype", "fro_norm", "spectral_norm", "stable_rank", "effective_rank"),
    *("participation_ratio", "numerical_rank", "rank_for_energy", "rank_for_error", "noise", "complete"),
    "singular_values",
]


@pytest.fixture
def analysis() -> Analysis:
    """A fine-tune of three matrices, one of them unchanged."""
    generator = torch.Generator().manual_seed(0)
    base = {f"model.layers.{i}.q_proj.weight": torch.randn(12, 9, generator=generator) for i in range(3)}
    tuned = {name: weight + i * torch.outer(weight[:, 0], weight[0]) for i, (name, weight) in enumerate(base.items())}
    return analyze(tuned | {"norm.weight": torch.ones(9)}, base | {"norm.weight": torch.ones(9)})


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> Analysis:
    """One small matrix known whole and one large matrix known in part."""
    monkeypatch.setattr(work, "FULL_SIDE", 64)
    monkeypatch.setattr(work, "PARTIAL_RANK", 4)
    generator = torch.Generator().manual_seed(0)
    return analyze({"small": torch.randn(9, 9, generator=generator), "large": torch.randn(96, 96, generator=generator)})


def test_the_json_has_the_fields_of_its_format(analysis: Analysis) -> None:
    content = analysis.to_json()
    assert list(content) == ["format", "kind", "source", "base", "matrices", "skipped", "left_out", "total"]
    assert content["format"] == "eckart-analysis/1"
    assert content["kind"] == "delta"
    assert all(list(matrix) == FIELDS for matrix in content["matrices"])
    matrix = content["matrices"][1]
    assert list(matrix["rank_for_energy"]) == ["0.9", "0.95", "0.99"]
    assert list(matrix["rank_for_error"]) == ["0.1", "0.01"]
    assert {"zero_fraction", "rounding_floor", "signal_rank"} <= set(matrix["noise"])
    assert content["skipped"] == [{"name": "norm.weight", "reason": "norm"}]
    assert content["total"]["params"] == 3 * 12 * 9
    assert content["total"]["matrices"] == 3
    assert content["total"]["peak_rss_bytes"] > 10**6


def test_the_json_holds_no_nan_even_of_a_zero_matrix(analysis: Analysis) -> None:
    assert json.loads(json.dumps(analysis.to_json(), allow_nan=False)) == analysis.to_json()


@pytest.mark.parametrize("which", ["analysis", "bounded"])
def test_a_saved_analysis_loads_as_it_was(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    before: Analysis = request.getfixturevalue(which)
    before.save(tmp_path / "out")
    for path in (tmp_path / "out", tmp_path / "out" / "analysis.json"):
        assert Analysis.load(path).to_json() == before.to_json()


def test_a_number_that_is_only_bounded_has_its_limits(bounded: Analysis) -> None:
    small, large = (entry["rank_for_energy"]["0.9"] for entry in bounded.to_json()["matrices"])
    assert isinstance(small, int)
    assert 0 < large["lower"] < large["upper"] <= 96


def test_the_table_has_a_row_a_matrix_and_columns_for_limits_only_where_needed(
    analysis: Analysis, bounded: Analysis, tmp_path: Path
) -> None:
    rows = {}
    for name, each in (("exact", analysis), ("bounded", bounded)):
        with each.save(tmp_path / name)[1].open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    assert [row["layer"] for row in rows["exact"]] == ["0", "1", "2"]
    assert {row["kind"] for row in rows["exact"]} == {"q_proj"}
    assert "rank_for_energy_0.9_lower" not in rows["exact"][0]
    small, large = rows["bounded"]
    assert small["rank_for_energy_0.9"] == small["rank_for_energy_0.9_lower"]
    assert large["rank_for_energy_0.9"] == ""
    assert int(large["rank_for_energy_0.9_lower"]) < int(large["rank_for_energy_0.9_upper"])


def test_the_dataframe_is_the_table(analysis: Analysis) -> None:
    frame = analysis.to_dataframe()
    assert len(frame) == 3
    assert frame["layer"].tolist() == [0, 1, 2]
    assert frame["stable_rank"].isna().tolist() == [True, False, False]


def test_without_pandas_the_error_says_what_to_install(analysis: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        analysis.to_dataframe()


def test_an_analysis_of_nothing_saves_and_loads(tmp_path: Path) -> None:
    empty = Analysis("weights", "here", None, [])
    empty.save(tmp_path)
    assert Analysis.load(tmp_path) == empty
    assert len(empty.to_dataframe()) == 0


def test_an_analysis_is_not_overwritten_unasked(analysis: Analysis, tmp_path: Path) -> None:
    analysis.save(tmp_path)
    before = (tmp_path / "analysis.json").read_bytes()
    with pytest.raises(OutputError, match="already contains"):
        replace(analysis, source="another").save(tmp_path)
    assert (tmp_path / "analysis.json").read_bytes() == before
    replace(analysis, source="another").save(tmp_path, overwrite=True)
    assert Analysis.load(tmp_path).source == "another"


def test_a_failed_save_leaves_nothing(analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        analysis.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused(analysis: Analysis, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        analysis.save(tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"format": "eckart-analysis/9"}', "expected 'eckart-analysis/1'"),
        ('{"format": "eckart-analysis/1"}', "damaged"),
    ],
)
def test_a_file_that_is_no_analysis_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "analysis.json").write_text(content)
    with pytest.raises(FileFormatError, match=said):
        Analysis.load(tmp_path)


def test_a_missing_analysis_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="eckart analyze"):
        Analysis.load(tmp_path)
