"""What all results share: a text that fits on a screen, a table for notebooks that escapes names, and a data frame."""

from dataclasses import dataclass
from typing import Any

from eckart.result import SHOWN_ROWS, Result, Skipped


@dataclass(frozen=True, repr=False)
class Layers(Result):
    """A result with one row per layer."""

    names: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "eckart-test/1",
            "layers": [{"name": name} for name in self.names],
            "error": 1 / 3,
            "guarantee": None,
            "output": "x" * 1000,
        }

    def rows(self) -> list[dict[str, Any]]:
        return [{"name": name, "rank": number} for number, name in enumerate(self.names)]


HOSTILE = "<script>alert(1)</script>"


def test_the_repr_gives_scalars_and_the_length_of_lists() -> None:
    text = repr(Layers(tuple(f"layer.{i}" for i in range(10_000))))
    assert text.startswith("Layers(layers=<10000 entries>, error=0.3333, output=xxx")
    assert len(text) < 200


def test_a_notebook_shows_the_first_rows_and_escapes_names() -> None:
    page = Layers((HOSTILE, *(f"layer.{i}" for i in range(SHOWN_ROWS + 4))))._repr_html_()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert page.count("<tr>") == 1 + SHOWN_ROWS
    assert "and 5 more rows" in page
    assert "<table>" not in Layers(())._repr_html_()


def test_a_data_frame_has_the_rows() -> None:
    frame = Layers(("a", "b")).to_dataframe()
    assert list(frame.columns) == ["name", "rank"]
    assert list(frame["rank"]) == [0, 1]


def test_a_skipped_item_is_its_name_and_reason() -> None:
    assert Skipped("lm_head", "not targeted").to_json() == {"name": "lm_head", "reason": "not targeted"}
