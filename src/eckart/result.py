"""What every operation returns: facts as JSON, rows for a data frame, and a text that fits on a screen."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from eckart.errors import MissingExtraError

if TYPE_CHECKING:
    import pandas as pd

SHOWN_ROWS = 20  # of a table in a notebook
_R = TypeVar("_R")
Finish = Callable[[Path, _R], object]
"""Adds files to the output of an operation before it gets its final name: called with the folder and the result."""


@dataclass(frozen=True)
class Skipped:
    """A tensor, module or config field that was not processed, and why."""

    name: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """The entry of a `skipped` list."""
        return {"name": self.name, "reason": self.reason}


class Result(ABC):
    """Base of all results; dataclasses that inherit it are declared with `repr=False`."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The result as dictionaries, lists, strings, finite numbers and None; `format` names its version."""

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One row per layer, matrix or cell; empty where a result has no such parts."""
        return ()

    def to_dataframe(self) -> "pd.DataFrame":
        """The rows as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            msg = "a data frame needs pandas: pip install pandas"
            raise MissingExtraError(msg) from error
        return pd.DataFrame.from_records([dict(row) for row in self.rows()])

    def __repr__(self) -> str:
        """The class and its scalar facts; of lists and tables only their length."""
        facts = {name: value for name, value in self.to_json().items() if name != "format" and value is not None}
        return f"{type(self).__name__}({', '.join(f'{name}={_brief(value)}' for name, value in facts.items())})"

    def _repr_html_(self) -> str:
        """The first rows as a table, for notebooks."""
        rows = list(self.rows())
        if not rows:
            return f"<pre>{escape(repr(self))}</pre>"
        head = "".join(f"<th>{escape(str(name))}</th>" for name in rows[0])
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(_brief(value))}</td>' for value in row.values())}</tr>"
            for row in rows[:SHOWN_ROWS]
        )
        more = f"<p>and {len(rows) - SHOWN_ROWS} more rows</p>" if len(rows) > SHOWN_ROWS else ""
        return (
            f"<pre>{escape(repr(self))}</pre><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
        )


def _brief(value: object) -> str:
    """A value in a few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return f"<{len(value)} entries>"
    if isinstance(value, (list, tuple)) and (len(value) > 4 or any(isinstance(item, Mapping) for item in value)):
        return f"<{len(value)} entries>"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
