"""What a reader is told after a merge: where the model is, and what it cost."""

from pathlib import Path

import pytest
from rich.console import Console

from eckart.operations.merging.merge import MergeResult
from eckart.operations.merging.unmerge import UnmergeResult
from eckart.report.tables.merge import merge_table, unmerge_table
from eckart.result import Skipped


def text(table) -> str:
    console = Console(width=80)
    with console.capture() as printed:
        console.print(table)
    return " ".join(printed.get().split())


def merged(**options) -> MergeResult:
    return MergeResult(Path("out"), 9, 2, 10**6, options.pop("untied", False), [], 1.0, **options)


@pytest.mark.parametrize(
    ("result", "said", "unsaid"),
    [
        (merged(), "2 of 9 tensors changed, 1 MB", "NF4"),
        (
            merged(update_error=0.64),
            "64.0% of the update, as any merge into it has; `dtype=float32` avoids it.",
            "NF4",
        ),
        (merged(update_error=0.001), "2 of 9 tensors changed", "Rounding"),
        (merged(untied=True), "no longer shares the embedding's", "NF4"),
        (merged(requantization_error=0.08, update_error=0.2), "8.00% of the merged weights and 20.0% of", "lost"),
        (
            merged(requantization_error=0.08, update_error=3.0),
            "3 times the update: most of what was merged is lost",
            "%%",
        ),
    ],
)
def test_a_merge_reports_its_cost(result, said, unsaid):
    assert said in text(merge_table(result))
    assert unsaid not in text(merge_table(result))


def test_a_share_that_is_not_whole_never_reads_as_all():
    result = UnmergeResult(Path("out"), 9, 2, 10**6, 1 - 1e-9, 1.0, 0.0, [Skipped("tokenizer", "none")], 1.0)
    said = text(unmerge_table(result))
    assert "Merging again gives 99.99%" in said
    assert "100% equal the base" in said
    assert "from it is 0 ulp." in said
    assert "tokenizer" in said
