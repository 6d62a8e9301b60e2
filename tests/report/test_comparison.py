"""Tables and figures of comparisons say what the comparison holds."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from eckart.adapter import Adapter, AdapterLayer
from eckart.operations.comparison.compare import compare
from eckart.operations.comparison.merge_check import MergeCheck, MergedMatrix
from eckart.operations.comparison.result import Comparison
from eckart.report.figures.comparison import alignment_map, overlap_map
from eckart.report.tables.comparison import comparison_table, merge_check_table, verdict_text

SHAPES = {"self_attn.q_proj": (48, 32), "mlp.down_proj": (32, 64)}


def adapter(seed: int, layers: int = 10) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    return Adapter(
        {
            f"model.layers.{i}.{kind}": AdapterLayer(
                torch.randn(4, columns, generator=g), torch.randn(rows, 4, generator=g), 8.0
            )
            for i in range(layers)
            for kind, (rows, columns) in SHAPES.items()
        }
    )


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    found = compare(adapter(1), adapter(2, layers=9))
    assert isinstance(found, Comparison)
    return replace(found, a="org/a-model-with-a-name-of-a-usual-length", b="another")


def text(table) -> str:
    printed = io.StringIO()
    Console(file=printed, width=80).print(table)
    return printed.getvalue()


def test_the_table_names_both_sides_and_what_only_one_has(comparison: Comparison) -> None:
    shown = text(comparison_table(comparison))
    assert "org/a-model-with-a-name-of-a-usual-length" in shown
    assert "Only in A: 2, only in B: 0" in shown
    assert "0.0833" in shown  # chance of 4 directions among 48


def test_nothing_to_compare_directions_of_is_a_dash() -> None:
    a = adapter(1, layers=1)
    zero = replace(a, layers={n: replace(x, lora_B=torch.zeros_like(x.lora_B)) for n, x in a.items()})
    found = compare(a, zero)
    assert isinstance(found, Comparison)
    assert "–" in text(comparison_table(found))
    with pytest.raises(ValueError, match="nothing to draw"):
        overlap_map(found)


def test_the_map_holds_the_cosine_of_each_layer_and_kind(comparison: Comparison) -> None:
    figure = alignment_map(comparison)
    figure.canvas.draw()
    cells = np.asarray(figure.axes[0].images[0].get_array())
    assert cells.shape == (2, 9)
    for matrix in comparison.matrices:
        row = ["self_attn.q_proj", "mlp.down_proj"].index(matrix.name.split(".", 3)[3])
        assert cells[row, int(matrix.name.split(".")[2])] == pytest.approx(matrix.cosine, abs=1e-6)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["q_proj", "down_proj"]


def test_overlap_is_compared_with_chance(comparison: Comparison) -> None:
    figure = overlap_map(comparison)
    figure.canvas.draw()
    phi, chance = (np.asarray(figure.axes[place].images[0].get_array()) for place in (0, 1))
    outputs = [matrix.outputs for matrix in comparison.matrices if matrix.outputs]
    np.testing.assert_allclose(phi, torch.stack([each.overlap.phi for each in outputs]).mean(0).numpy())
    np.testing.assert_allclose(chance, torch.stack([each.overlap.chance for each in outputs]).mean(0).numpy())
    assert "chance" in figure.texts[0].get_text()


def test_checkpoints_that_are_nearly_equal_do_not_all_get_one_color() -> None:
    g = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.q_proj.weight": torch.randn(24, 16, generator=g) for i in range(4)}
    tuned = {
        name: weight + 0.01 * i * torch.randn(24, 16, generator=g) for i, (name, weight) in enumerate(base.items())
    }
    compared = compare(base, tuned)
    assert isinstance(compared, Comparison)
    cells = alignment_map(compared).axes[0].images[0]
    cosines = [matrix.cosine for matrix in compared.matrices if matrix.cosine is not None]
    assert min(cosines) > 0.99
    low, high = cells.get_clim()
    assert high - low < 0.01
    assert low <= min(cosines)
    assert high >= max(cosines)


WHOLE = MergedMatrix("layers.0.q_proj", (4, 4), equal=True, ulps=0.5, error=1e-8, lowest=0.999, highest=1.001)
CLAIM = MergeCheck("merged", "base", ["lora"], [1.0], [WHOLE], [], [], [], 3, 0.1)
OFF = replace(WHOLE, equal=False, ulps=1e5, error=0.5)

SENTENCES = {
    "merged is base + lora, bit for bit.": CLAIM,
    "merged is base + lora, within the rounding of a merge.": replace(CLAIM, matrices=[replace(WHOLE, equal=False)]),
    "merged is not base + lora: it fits with weight 0.5.": replace(
        CLAIM, matrices=[replace(OFF, lowest=0.499, highest=0.501)]
    ),
    "merged is not base + lora: the adapter is not in it.": replace(
        CLAIM, matrices=[replace(OFF, lowest=-0.1, highest=0.1)]
    ),
    "merged may be base + lora: the update is too small compared with rounding to tell.": replace(
        CLAIM, matrices=[replace(OFF, lowest=-0.1, highest=2.0)]
    ),
    "merged is not base + lora.": replace(CLAIM, matrices=[replace(OFF, lowest=2.0, highest=1.0)]),
    "merged is base + 0.5 × lora, bit for bit.": replace(CLAIM, weights=[0.5]),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_verdict_is_a_sentence(sentence: str) -> None:
    assert verdict_text(SENTENCES[sentence]) == sentence
    assert text(merge_check_table(SENTENCES[sentence])).startswith(f"Verdict: {sentence[:40]}")


def test_untouched_tensors_that_changed_are_named_and_decide() -> None:
    shown = text(merge_check_table(replace(CLAIM, altered=["norm.weight"])))
    assert "merged is not base + lora." in shown
    assert "norm.weight: changed, but no adapter covers it" in shown
