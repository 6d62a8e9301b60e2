"""The result of an analysis: one entry per matrix, the totals, and what was skipped."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eckart.errors import FileFormatError, SourceError
from eckart.linalg import Interval
from eckart.operations.analysis.files import refuse_existing, write_together
from eckart.operations.analysis.matrix import MatrixAnalysis
from eckart.operations.analysis.places import Place, by_kind, places
from eckart.result import Result, Skipped

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["weights", "delta", "adapter"]

FORMAT = "eckart-analysis/1"
JSON_NAME, CSV_NAME = "analysis.json", "analysis.csv"


@dataclass(frozen=True, repr=False)
class Analysis(Result):
    """The spectra of a checkpoint, of the difference of two, or of an adapter.

    Attributes:
        kind: `weights`, `delta` (tuned minus base) or `adapter`.
        source: the SOURCE as it was given.
        base: the checkpoint that was subtracted, for a `delta`.
        matrices: in the order of the source's files.
        skipped: tensors that were not analyzed, and why.
        seconds: wall time.
        peak_rss_bytes: peak resident memory of the process so far.
    """

    kind: Kind
    source: str
    base: str | None
    matrices: list[MatrixAnalysis]
    skipped: list[Skipped] = field(default_factory=list)
    seconds: float = 0.0
    peak_rss_bytes: int = 0

    @property
    def params(self) -> int:
        """Entries of all matrices together."""
        return sum(matrix.params for matrix in self.matrices)

    @property
    def is_complete(self) -> bool:
        """Whether every singular value of every matrix was computed."""
        return all(matrix.spectrum.complete for matrix in self.matrices)

    def places(self) -> dict[str, Place]:
        """The layer and the module kind of every matrix, by name."""
        return places(matrix.name for matrix in self.matrices)

    def by_kind(self) -> dict[str, list[MatrixAnalysis]]:
        """The matrices of each module kind, kinds in the order in which a layer computes (`q_proj` first)."""
        return by_kind(self.matrices)

    def rows(self) -> list[dict[str, Any]]:
        """The table of `analysis.csv`: one flat dictionary per matrix, all with the same keys.

        A statistic that is an interval leaves its own column empty and fills `<column>_lower` and
        `<column>_upper`; these two columns exist only if a matrix needs them.
        """
        where = self.places()
        measured = [matrix.statistics() for matrix in self.matrices]
        bounded = {key for numbers in measured for key, number in numbers.items() if isinstance(number, Interval)}
        table = []
        for matrix, numbers in zip(self.matrices, measured, strict=True):
            place, noise = where[matrix.name], matrix.noise
            row: dict[str, Any] = {"name": matrix.name, "layer": place.layer, "kind": place.kind}
            row |= {"out_features": matrix.shape[0], "in_features": matrix.shape[1], "dtype": matrix.dtype}
            for key, number in numbers.items():
                row[key] = None if isinstance(number, Interval) else number
                if key in bounded:
                    limits = (number.lower, number.upper) if isinstance(number, Interval) else (number, number)
                    row |= {f"{key}_lower": limits[0], f"{key}_upper": limits[1]}
            for key in ("zero_fraction", "rounding_floor", "signal_rank"):
                row[key] = getattr(noise, key) if noise else None
            row["complete"] = matrix.spectrum.complete
            table.append(row)
        return table

    def to_json(self) -> dict[str, Any]:
        """The content of `analysis.json`: only dictionaries, lists, strings, finite numbers and None."""
        skipped = [item.to_json() for item in self.skipped]
        return {
            "format": FORMAT,
            "kind": self.kind,
            "source": self.source,
            "base": self.base,
            "matrices": [matrix.to_json() for matrix in self.matrices],
            "skipped": skipped,
            "left_out": skipped,  # the name of this field in the first files of version 1
            "total": {
                "params": self.params,
                "matrices": len(self.matrices),
                "seconds": self.seconds,
                "peak_rss_bytes": self.peak_rss_bytes,
            },
        }

    def to_dataframe(self) -> "pd.DataFrame":
        """One row per matrix, with the columns of `analysis.csv`, as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return super().to_dataframe().astype({"layer": "Int64"} if self.matrices else {})

    def save(self, folder: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write `analysis.json` and `analysis.csv`, both completely or neither.

        Args:
            folder: created if it does not exist.
            overwrite: replace an existing analysis.

        Returns:
            the two paths.

        Raises:
            OutputError: the folder contains an analysis, or cannot be written.
        """
        folder = Path(folder)
        if not overwrite:
            refuse_existing(folder, (JSON_NAME, CSV_NAME))
        rows = self.rows()
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames=list(rows[0]) if rows else ["name"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        content = json.dumps(self.to_json(), allow_nan=False)
        return write_together(folder, {JSON_NAME: content, CSV_NAME: table.getvalue()})

    @staticmethod
    def load(path: str | Path) -> "Analysis":
        """The analysis saved in a folder, or in one `analysis.json`.

        Raises:
            SourceError: there is no such file.
            FileFormatError: it is not an analysis that this version can read.
        """
        from eckart.checkpoint.result_files import read_result
        from eckart.operations.analysis.stored_sizes import size_fault

        file = Path(path) / JSON_NAME if Path(path).is_dir() else Path(path)
        if not file.exists():
            msg = f"{file} does not exist; expected a folder that `eckart analyze SOURCE -o FOLDER` wrote"
            raise SourceError(msg)
        content = read_result(file, [FORMAT])
        if fault := size_fault(content):
            msg = f"{file}: damaged: {fault}; run `eckart analyze` again"
            raise FileFormatError(msg)
        return _from_json(content)


def _from_json(content: dict[str, Any]) -> Analysis:
    """The analysis that `Analysis.to_json` described."""
    return Analysis(
        kind=content["kind"],
        source=content["source"],
        base=content["base"],
        matrices=[MatrixAnalysis.from_json(entry) for entry in content["matrices"]],
        skipped=[Skipped(**item) for item in content["left_out"]],
        seconds=content["total"]["seconds"],
        peak_rss_bytes=content["total"]["peak_rss_bytes"],
    )
