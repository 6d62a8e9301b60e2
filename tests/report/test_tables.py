"""Tables fit a terminal of 80 columns, say the medians, and hide nothing that was skipped."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console, RenderableType

from eckart.adapter import Adapter
from eckart.evaluation import GainReport
from eckart.linalg import Interval, RankBound
from eckart.operations import AdapterResult, Analysis, LayerRecord, analyze, extract
from eckart.report import adapter_table, analysis_table
from eckart.report.tables.lines import Paragraph
from eckart.report.tables.training import updates_grid
from eckart.report.words import bytes_text, count_text, number_text, seconds_text
from eckart.result import Skipped
from eckart.training import DistillResult
from eckart.training.divergence import Agreement
from eckart.training.trajectory import LayerDynamics


def printed(table: RenderableType) -> list[str]:
    """The lines on a terminal wider than they may be."""
    text = io.StringIO()
    Console(file=text, width=200, color_system=None).print(table)
    return text.getvalue().splitlines()


def printed_narrow(table: RenderableType) -> str:
    text = io.StringIO()
    Console(file=text, width=80, color_system=None).print(table)
    return text.getvalue()


def row(lines: list[str], label: str) -> list[str]:
    return next(line for line in lines if line.split()[:1] == [label]).split()


def test_many_matrices_are_a_line_a_kind_within_80_columns(of_update: Analysis) -> None:
    lines = printed(analysis_table(of_update))
    assert len(lines) < len(of_update.matrices)
    table = [line for line in lines if line.startswith((" ", "──"))]
    assert max(map(len, table)) <= 80
    assert row(lines, "q_proj")[1:3] == ["8", "48×32"]


def test_a_kind_shows_median_and_range_of_the_needed_rank(of_update: Analysis) -> None:
    ranks = sorted(matrix.spectrum.rank_for_energy(0.9) for matrix in of_update.by_kind()["v_proj"])
    middle = (ranks[3] + ranks[4]) / 2
    assert f"{middle:.0f} ({ranks[0]}–{ranks[-1]})" in " ".join(row(printed(analysis_table(of_update)), "v_proj"))


def test_few_matrices_are_listed_by_name(of_weights: Analysis) -> None:
    few = replace(of_weights, matrices=of_weights.matrices[:2])
    text = printed_narrow(analysis_table(few))
    assert "model.layers.0.self_attn.q_proj" in text
    assert "Median" not in text


def test_the_noise_column_is_there_for_an_update_only(of_update: Analysis, of_weights: Analysis) -> None:
    assert "noise" in printed_narrow(analysis_table(of_update))
    assert "noise" not in printed_narrow(analysis_table(of_weights))


def test_a_zero_matrix_has_dashes_for_numbers() -> None:
    lines = printed(analysis_table(analyze({"zero": torch.zeros(4, 4), "one": torch.eye(4)})))
    assert row(lines, "zero")[2:] == ["–", "–", "–"]


def test_what_was_skipped_is_counted_by_reason(of_weights: Analysis) -> None:
    left = [Skipped(f"layers.{i}.bias", "bias") for i in range(50)] + [Skipped(f"x{i}", f"r{i}") for i in range(5)]
    text = printed_narrow(analysis_table(replace(of_weights, skipped=left)))
    assert "55 skipped: 50 bias (such as layers.0.bias), 1 r0 (x0)" in text
    assert "2 others" in " ".join(text.split())
    assert text.count("skipped") == 1


def test_a_bounded_rank_shows_its_limits() -> None:
    from eckart.linalg import partial_spectrum

    found = analyze({"weight": torch.randn(200, 200, generator=torch.Generator().manual_seed(0))})
    known = partial_spectrum(
        torch.randn(200, 200, generator=torch.Generator().manual_seed(0)),
        rank=8,
        generator=torch.Generator().manual_seed(0),
    )
    bounded = replace(found, matrices=[replace(found.matrices[0], spectrum=known)])
    limits = known.rank_for_error(0.1)
    assert isinstance(limits, RankBound)
    text = printed_narrow(analysis_table(bounded))
    assert f"{limits.lower}–{limits.upper}" in text
    assert "`full`" in text


@pytest.fixture
def pair(tmp_path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    base = {f"model.layers.{i}.q_proj.weight": torch.randn(24, 16, generator=generator) for i in range(20)}
    return base, {name: weight + 0.1 * torch.randn(24, 16, generator=generator) for name, weight in base.items()}


def test_an_extraction_shows_ranks_errors_and_size(pair) -> None:
    extraction = extract(*pair, rank=4)
    lines = printed(adapter_table(extraction))
    assert row(lines, "q_proj")[1:4] == ["20", "24×16", "4"]
    text = "\n".join(lines)
    assert f"{extraction.error:.2%}" in text
    assert "20 layers, 3.2 k parameters" in text
    assert max(len(line) for line in lines if line.startswith((" ", "──"))) <= 80


def test_an_extraction_with_a_budget_says_what_is_proved(pair) -> None:
    extraction = extract(*pair, budget=2000)
    assert extraction.guarantee is not None
    assert extraction.guarantee.split()[0] in printed_narrow(adapter_table(extraction))


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (GainReport(base_loss=3.4, tuned_loss=3.0, adapter_loss=3.04, tokens=4096), "Gain recovered: 90%"),
        (GainReport(base_loss=3.0, tuned_loss=3.0, adapter_loss=3.0, tokens=4096), "No gain recovered"),
    ],
)
def test_an_extraction_says_what_gain_it_recovers(pair, gain: GainReport, said: str) -> None:
    assert said in printed_narrow(adapter_table(extract(*pair, rank=2), gain))


@pytest.mark.parametrize(
    ("note", "said"),
    [
        (None, "KL to the teacher 0.2000 → 0.1000, loss 3.2000 → 3.1000 nats per token, gain recovered 50% → 75%. The"),
        ("the KL did not fall", "gain recovered 50% → 75%. Not kept: the KL did not fall."),
    ],
)
def test_a_distillation_says_what_it_did_and_whether_it_is_kept(pair, note: str | None, said: str) -> None:
    before, after = Agreement(kl=0.2, loss=3.2), Agreement(kl=0.1, loss=3.1)
    distilled = DistillResult(before, after, 3.4, 3.0, tokens=2040, losses=[0.2] * 40, note=note, seconds=1.0)
    extraction = extract(*pair, rank=2)
    worse = replace(extraction, layers=[replace(layer, error=1.5) for layer in extraction.layers])
    text = printed_narrow(adapter_table(worse, distilled=distilled))
    assert said in " ".join(text.split())
    assert "150%" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(19_531_000), "19.5 MB"),
        (bytes_text(140e9), "140 GB"),
        (bytes_text(2.1e12), "2.1 TB"),
        (seconds_text(0.84), "0.84 s"),
        (seconds_text(75), "75 s"),
        (seconds_text(720), "12 min"),
        (seconds_text(12_240), "3.4 h"),
        (count_text(576), "576"),
        (count_text(134_515_008), "135 M"),
        (count_text(999_600), "1 M"),
        (count_text(8_030_000_000), "8.03 B"),
        (number_text(None), "–"),
        (number_text(12), "12"),
        (number_text(2.7182818), "2.72"),
        (number_text(Interval(1.5, 2.25)), "1.5–2.25"),
    ],
)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("count", [2, 20])
def test_a_name_is_never_broken_and_numbers_give_way_to_it(count: int) -> None:
    """Names as kohya flattens them, too long for a table with all of its columns."""
    prefix = "lora_te1_text_model_component"
    names = [f"{prefix}_{'qk'[place]}_proj_of_attention" for place in range(2)]
    matrices = [f"{place}.{name}" for place in range(count // 2) for name in names]
    generator = torch.Generator().manual_seed(0)
    analysis = analyze({f"layers.{name}": torch.randn(12, 8, generator=generator) for name in matrices})
    text = printed_narrow(analysis_table(analysis))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert sum(name in line for line in text.splitlines() for name in names) == 2


def test_ranges_go_before_a_column_does(of_update: Analysis) -> None:
    text = io.StringIO()
    Console(file=text, width=56, color_system=None).print(analysis_table(of_update))
    table = text.getvalue().split("Median")[0]
    assert "noise" in table
    assert "down_proj" in table
    assert "–" not in table.replace("──", "")


def test_a_path_is_never_broken(pair, tmp_path: Path) -> None:
    long = tmp_path / ("a-folder-of-a-long-name-" * 4) / "adapter"
    result = replace(extract(*pair, rank=2), output=long)
    text = io.StringIO()
    Console(file=text, width=80, color_system=None).print(adapter_table(result), crop=False)
    assert f"Adapter in {long}" in text.getvalue().splitlines()


def test_an_error_of_rounding_alone_is_a_limit_not_a_number(pair) -> None:
    extraction = extract(*pair, rank=4)
    exact = replace(
        extraction, layers=[replace(layer, error=6.94e-16, error_lower_bound=0.0) for layer in extraction.layers]
    )
    text = printed_narrow(adapter_table(exact))
    assert "e-1" not in text
    assert "< 0.001%" in text
    assert "over all layers: < 0.01%; the least possible at these ranks: 0.00%" in " ".join(text.split())


def test_a_range_whose_ends_read_the_same_is_shown_once() -> None:
    layers = [LayerDynamics(f"layers.{i}.q", (8, 8), 2, 1.0, relative_norm=[i * 1e-9]) for i in range(1, 20)]
    text = printed_narrow(updates_grid(layers))
    assert text.count("< 0.001%") == 1
    layers[0].relative_norm = [0.5]
    assert "< 0.001% (< 0.001–50%)" in printed_narrow(updates_grid(layers))


@pytest.mark.parametrize(("width", "lines"), [(80, 1), (57, 2), (54, 2), (20, 3)])
def test_prose_is_wrapped_once_and_a_number_keeps_its_unit(width: int, lines: int) -> None:
    text = io.StringIO()
    prose = "30 steps in 2 min of 137 M parameters, peak memory 2.96 GB"
    Console(file=text, width=width, color_system=None).print(Paragraph(prose))
    assert len(text.getvalue().splitlines()) == lines
    assert all(words in text.getvalue() for words in ("2 min", "137 M", "2.96 GB"))


def test_a_skipped_norm_has_its_remedy_once(pair) -> None:
    left = [Skipped(f"layers.{i}.norm", "norm") for i in range(60)] + [Skipped("lm_head", "not targeted")]
    text = " ".join(printed_narrow(adapter_table(replace(extract(*pair, rank=2), skipped=left))).split())
    assert "61 skipped: 60 norm (such as layers.0.norm; `modules_to_save=norm` saves them), 1 not targeted" in text
    assert text.count("modules_to_save") == 1


def test_every_layer_has_its_line_where_that_is_asked_for():
    layers = [LayerRecord(f"model.layers.{i}.q_proj", (8, 8), 4, 0.5, 0.25, 1.0, signal_rank=i % 3) for i in range(20)]
    result = AdapterResult("extract", Adapter({}), layers, [], None, 1, 1.0)
    summary, listed = ("\n".join(printed(adapter_table(result, per_layer=each))) for each in (False, True))
    assert "Above the rounding of the stored weights: 1 directions (0–2)." in summary
    assert "Median over the layers" in summary
    assert "Median over the layers" not in listed
    assert all(f"layers.{i}.q_proj" in listed for i in range(20))
    assert "noise" in listed
