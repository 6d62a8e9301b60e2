"""Ranks chosen by the gain that they keep, on a tiny Llama and its fine-tune."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging
from typer.testing import CliRunner

from eckart.cli.main import app
from eckart.errors import EckartError, FileFormatError, OptionError, SourceError
from eckart.evaluation import GainMeter, HeldOut, load_model, losses_of, measure_gain, text_loss
from eckart.formats import load_adapter
from eckart.nn import adapter_applied
from eckart.operations import analyze, extract, resize
from eckart.operations.truncation import Truncations
from eckart.report.page import read_results
from eckart.report.page.extraction import is_of
from eckart.training import FinetuneSettings, GainChoice, RankByGain, finetune, held_out_for, load_held_out, pack_texts

from .tiny import TEMPLATE, Reports, words


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    """The tiny model after its projections have learnt the words."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(tiny), load_model(tiny)
    sequences = pack_texts([words(3000, seed=1)], tokenizer, length=32)
    before = {name: value.clone() for name, value in model.state_dict().items() if "proj" not in name}
    finetune(model, sequences, FinetuneSettings(steps=60, batch_size=8, learning_rate=1e-2))
    model.load_state_dict(before, strict=False)
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def held_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("held") / "held.txt"
    path.write_text(words(1500, seed=5))
    return path


@pytest.fixture(scope="module")
def held_out(tiny, held_text):
    return held_out_for(tiny, held_text)


@pytest.fixture(scope="module")
def adapter(tiny, tuned):
    return extract(tiny, tuned, rank=16).adapter


def gains_at(tiny, tuned, held_out, adapter, ranks):
    meter = GainMeter(tiny, tuned, held_out)
    truncations = Truncations.of(adapter, is_ordered=True)
    return [meter.report(meter.losses(truncations.at(truncations.uniform(rank)))).gain_recovered for rank in ranks]


# ---- held-out data


def test_losses_by_part_add_up_to_the_loss_of_the_text(tiny, tokenizer, held_text, held_out):
    model, ids = load_model(tiny), torch.tensor(tokenizer(held_text.read_text())["input_ids"])
    ids = torch.cat([ids, torch.tensor([tokenizer.eos_token_id])])
    reference = text_loss(model, ids)
    sums = losses_of(model, held_out)
    assert len(sums) == len(held_out.counts) > 1
    assert held_out.tokens == reference.tokens
    assert float(sums.sum()) / held_out.tokens == pytest.approx(reference.nats_per_token, rel=1e-6)


def test_only_completions_count_and_every_record_is_a_part(tiny, tokenizer, tmp_path):
    records = [{"prompt": words(5, seed=i), "completion": words(i + 1, seed=50 + i)} for i in range(6)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    data = held_out_for(tiny, path)
    assert not data.is_text
    assert data.counts.tolist() == [len(tokenizer(each["completion"])["input_ids"]) + 1 for each in records]
    model = load_model(tiny)
    sums = losses_of(model, data)
    for ids, labels, loss in zip(data.sequences, data.labels, sums.tolist(), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum")
        assert loss == pytest.approx(float(expected), rel=1e-5)


def test_messages_and_parquet_are_read_as_training_reads_them(tokenizer, tmp_path):
    pandas = pytest.importorskip("pandas")
    tokenizer.chat_template = TEMPLATE
    messages = [{"role": "user", "content": "the rank"}, {"role": "assistant", "content": "low noise"}]
    path = tmp_path / "data.parquet"
    pandas.DataFrame({"messages": [messages] * 3}).to_parquet(path)
    data = load_held_out(path, tokenizer)
    assert len(data.sequences) == len(data.counts) == 3
    assert 0 < data.tokens < sum(len(ids) - 1 for ids in data.sequences)


@pytest.mark.parametrize(
    ("content", "name", "error", "said"),
    [
        (None, "no.txt", SourceError, "no such file"),
        ("", "empty.txt", EckartError, "nothing to predict"),
        ("\xff\xfe", "broken.txt", FileFormatError, "not UTF-8"),
        ('{"question": 1}', "odd.jsonl", FileFormatError, "expected text, or prompt and completion"),
    ],
)
def test_bad_held_out_data_are_refused(tokenizer, tmp_path, *, content, name, error, said):
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(error, match=said):
        load_held_out(tmp_path / name, tokenizer)


def test_overlap_finds_sequences_that_were_trained_on_at_any_offset():
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(1000, (4000,), generator=generator).tolist()
    data = HeldOut([stream[100:300], stream[5:40], [1] * 200], [stream[100:300], stream[5:40], [1] * 200])
    assert data.overlap([stream]) == 2
    assert data.overlap([stream[:250], [2] * 500]) == 1
    records = HeldOut([[1, 2, 3], [4, 5]], [[1, 2, 3], [4, 5]], is_text=False)
    assert records.overlap([[0, 1, 2, 3], [4, 5]]) == 1


# ---- the choice


@pytest.mark.parametrize("keep", [0.5, 0.8, 0.95])
def test_the_rank_is_the_smallest_that_keeps_enough(tiny, tuned, held_out, adapter, keep):
    gains = gains_at(tiny, tuned, held_out, adapter, range(1, 17))
    choose = RankByGain(tiny, tuned, held_out, GainChoice(keep), is_ordered=True)
    result = choose(adapter)
    smallest = next(rank for rank, gain in enumerate(gains, 1) if gain >= keep)
    assert {layer.rank for layer in result.values()} == {min(smallest, 16)}
    curve = choose.result
    assert curve.reached
    assert curve.chosen.rank == smallest
    assert [point.gain for point in curve.points] == pytest.approx([gains[p.rank - 1] for p in curve.points])
    assert smallest == 1 or smallest - 1 in [point.rank for point in curve.points]
    assert len(curve.points) < 16


def test_a_ladder_measures_each_of_its_ranks(tiny, tuned, held_out, adapter):
    choose = RankByGain(tiny, tuned, held_out, GainChoice(0.8, ladder=(8, 1, 4, 99)), is_ordered=True)
    choose(adapter)
    assert [point.rank for point in choose.result.points] == [1, 4, 8, 16]
    assert choose.result.chosen.rank in (1, 4, 8)


def test_shared_ranks_have_the_size_of_a_uniform_rank_and_keep_more_energy(adapter):
    truncations = Truncations.of(adapter, is_ordered=True)
    for rank in (1, 3, 7):
        uniform, shared = truncations.uniform(rank), truncations.shared(rank)
        assert len(set(shared.values())) > 1
        assert truncations.lost(shared) <= truncations.lost(uniform)
        assert 0.9 * truncations.at(uniform).params <= truncations.at(shared).params <= truncations.at(uniform).params


@pytest.mark.parametrize("metric", ["loss", "kl"])
def test_the_whole_adapter_is_the_measure_of_its_truncations(tiny, held_out, adapter, metric):
    choose = RankByGain(tiny, adapter, held_out, GainChoice(0.9, metric=metric))
    result = choose(adapter)
    curve = choose.result
    assert curve.points[-1].gain == pytest.approx(1.0, abs=1e-4)
    assert curve.report.metric == metric
    if metric == "kl":
        assert curve.report.tuned_loss == 0
        assert curve.report.base_loss > 0
    meter = GainMeter(tiny, adapter, held_out, metric=metric)
    again = meter.report(meter.losses(result))
    assert again.gain_recovered == pytest.approx(curve.report.gain_recovered, abs=1e-6)
    assert 0.9 <= again.gain_recovered < 1


def test_a_divergence_is_that_of_the_predictions(tiny, tuned, held_out):
    base, other = load_model(tiny), load_model(tuned)
    sums = losses_of(base, held_out, teacher=lambda ids: other(input_ids=ids).logits)
    total = 0.0
    for ids in held_out.sequences:
        with torch.no_grad():
            p, q = (model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for model in (other, base))
        total += float((p.exp() * (p - q)).sum())
    assert float(sums.sum()) == pytest.approx(total, rel=1e-5)


def test_a_rank_that_keeps_too_little_is_distilled_and_measured_on_other_text(tiny, tuned, adapter):
    held_out = HeldOut(*[[row.tolist() for row in torch.tensor(held_ids(tiny, 6000)).view(-1, 32)]] * 2)
    progress = Reports()
    choose = RankByGain(
        tiny,
        tuned,
        held_out,
        GainChoice(0.99, max_rank=1, remedy=True),
        settings=FinetuneSettings(steps=20, batch_size=8, learning_rate=0.3, warmup_steps=2),
        is_ordered=True,
        progress=progress,
    )
    result = choose(adapter)
    assert choose.result.distilled
    assert choose.distillation.result.kept
    assert any("distilled on the first half" in note for note in choose.result.notes)
    assert choose.result.report.tokens < held_out.tokens
    assert choose.result.report.gain_recovered > choose.result.chosen.gain
    assert {layer.rank for layer in result.values()} == {1}


def held_ids(tiny, count):
    return PreTrainedTokenizerFast.from_pretrained(tiny)(words(count, seed=9))["input_ids"][: count // 32 * 32]


def test_a_fine_tune_that_is_no_better_is_refused_with_both_losses(tiny, tuned, held_out, adapter):
    with pytest.raises(EckartError, match=r"no better than its base \(\d\.\d{4} against \d\.\d{4}"):
        RankByGain(tuned, tiny, held_out)(adapter)


@pytest.mark.parametrize("options", [{"keep": 0.0}, {"keep": 1.0}, {"ladder": (0, 2)}])
def test_choices_out_of_range_are_refused(options):
    with pytest.raises(OptionError):
        GainChoice(**options)


# ---- the commands


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("more", [[], ["--share"], ["--ladder", "1,2,4,8"], ["--metric", "kl"]])
def test_extract_writes_the_chosen_rank_with_its_curve(tiny, tuned, held_text, tmp_path, more):
    ended = run("extract", tiny, tuned, "-o", tmp_path / "out", "--gain", "0.8", "--eval", held_text, "--json", *more)
    assert ended.exit_code == 0, ended.stderr
    facts = json.loads(ended.stdout)
    gain = facts["gain"]
    assert gain["reached"]
    assert facts["eval"]["gain_recovered"] >= 0.8
    assert facts["eval"]["interval"]["lower"] <= facts["eval"]["gain_recovered"] <= facts["eval"]["interval"]["upper"]
    written = load_adapter(tmp_path / "out")
    if "--share" not in more:
        assert {layer.rank for layer in written.values()} == {gain["rank"]}
    assert {each["name"]: each["rank"] for each in facts["layers"] if each["rank"]} == {
        n: x.rank for n, x in written.items()
    }
    assert written.params == facts["params"] == next(p["params"] for p in gain["curve"] if p["rank"] == gain["rank"])
    assert json.loads((tmp_path / "out/extract.json").read_text())["gain"] == gain
    assert {"gain.png", "report.html"} <= {path.name for path in (tmp_path / "out").iterdir()}
    plain = extract(tiny, tuned, rank=gain["rank"])
    if "--share" not in more:
        errors = {layer.name: layer for layer in plain.layers}
        for layer in facts["layers"]:
            assert layer["error"] == pytest.approx(errors[layer["name"]].error, rel=1e-3)
            assert layer["error_lower_bound"] == pytest.approx(errors[layer["name"]].error_lower_bound, rel=1e-2)
    for point in gain["curve"]:
        assert ("ranks" in point) == ("--share" in more)
        if point["rank"] == gain["rank"] and "ranks" in point:
            assert {name: rank for name, rank in point["ranks"].items() if rank} == {
                n: x.rank for n, x in written.items()
            }
    metric = "kl" if "kl" in more else "loss"
    assert measure_gain(tiny, tuned, written, held_out_for(tiny, held_text), metric=metric).gain_recovered == (
        pytest.approx(facts["eval"]["gain_recovered"], abs=1e-5)
    )


def test_the_table_shows_every_measured_rank_with_its_interval(tiny, tuned, held_text, tmp_path):
    ended = run("extract", tiny, tuned, "-o", tmp_path / "out", "--gain", "0.8", "--eval", held_text)
    assert ended.exit_code == 0, ended.stderr
    gain = json.loads((tmp_path / "out/extract.json").read_text())["gain"]
    assert "Gain kept by rank" in ended.stdout
    assert len(gain["curve"]) > 1
    for point in gain["curve"]:
        assert f"{point['gain_recovered']:.1%}" in ended.stdout
        assert f"{point['interval']['lower']:.1%} – {point['interval']['upper']:.1%}" in ended.stdout


def test_resize_keeps_a_gain_of_the_adapter(tiny, tuned, held_text, tmp_path):
    extract(tiny, tuned, rank=8, output=tmp_path / "adapter")
    out = tmp_path / "out"
    ended = run("resize", tmp_path / "adapter", "-o", out, "--gain", "0.9", "--eval", held_text, "--json")
    assert ended.exit_code == 0, ended.stderr
    facts, small = json.loads(ended.stdout), load_adapter(out)
    assert {layer.rank for layer in small.values()} == {facts["gain"]["rank"]}
    assert facts["gain"]["rank"] < 8
    exact = resize(tmp_path / "adapter", rank=facts["gain"]["rank"])
    assert facts["error"] == pytest.approx(exact.error, rel=1e-4)
    assert facts["error_lower_bound"] == pytest.approx(exact.error_lower_bound, rel=1e-4)
    (shown,) = read_results([out]).extractions.values()
    assert shown["gain"]["curve"] == facts["gain"]["curve"]
    assert is_of(shown, analyze(tmp_path / "adapter"))
    model = load_model(tiny)
    with adapter_applied(model, small):
        loss = losses_of(model, held_out_for(tiny, held_text))
    assert float(loss.sum()) / facts["eval"]["tokens"] == pytest.approx(facts["eval"]["adapter_loss"], rel=1e-5)


def test_eval_alone_reports_the_gain_that_a_resized_adapter_keeps(tiny, tuned, held_text, tmp_path):
    extract(tiny, tuned, rank=4, output=tmp_path / "adapter")
    ended = run("resize", tmp_path / "adapter", "-o", tmp_path / "out", "--rank", 2, "--eval", held_text)
    assert ended.exit_code == 0, ended.stderr
    assert "Gain recovered:" in ended.stdout
    assert "% interval" in ended.stdout
    assert "Gain recovered" in (tmp_path / "out/README.md").read_text()
    assert len(load_file(tmp_path / "out/adapter_model.safetensors")) > 0


def test_a_miss_without_a_remedy_is_said(tiny, tuned, held_text, tmp_path):
    options = ["--gain", "0.9999", "--ladder", "1", "--eval", held_text, "--json"]
    ended = run("extract", tiny, tuned, "-o", tmp_path / "out", *options)
    assert ended.exit_code == 0, ended.stderr
    gain = json.loads(ended.stdout)["gain"]
    assert not gain["reached"]
    assert "of the gain, less than the 99.99 % asked for" in ended.stderr


def test_evaluation_text_that_is_distilled_on_is_noted(tiny, tuned, tmp_path):
    held_text = tmp_path / "text.txt"
    held_text.write_text(words(2000, seed=6))
    options = ["--eval", held_text, "--distill", held_text, "--steps", "1", "--rank", "1"]
    ended = run("extract", tiny, tuned, "-o", tmp_path / "out", *options)
    assert ended.exit_code == 0, ended.stderr
    assert "held-out sequences are in the text of --distill" in ended.stderr


def test_evaluation_text_that_the_adapter_was_trained_on_is_noted(tiny, tmp_path):
    (tmp_path / "data.txt").write_text(words(800))
    (tmp_path / "other.txt").write_text(" ".join(reversed(words(800).split())))
    training = ["--steps", 1, "--rank", 2, "--batch-size", 2, "--learning-rate", "1e-3"]
    ended = run("train", tiny, tmp_path / "data.txt", "-o", tmp_path / "adapter", *training)
    assert ended.exit_code == 0, ended.stderr
    for name, is_seen in (("data.txt", True), ("other.txt", False)):
        options = ["--rank", 1, "--eval", tmp_path / name]
        ended = run("resize", tmp_path / "adapter", "-o", tmp_path / f"of {name}", *options)
        assert ended.exit_code == 0, ended.stderr
        assert ("the training data of" in ended.stderr) == is_seen


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gain", "0.9"], "--gain is measured on held-out text; name it with --eval"),
        (["--gain", "0.9", "--rank", "4", "--eval", "TEXT"], "exactly one way; got --gain and --rank"),
        (["--gain", "1.5", "--eval", "TEXT"], "--gain must be a share between 0 and 1"),
        (["--ladder", "1,2", "--eval", "TEXT"], "--ladder can only be used with --gain"),
        (["--share", "--max-rank", "8"], "--share and --max-rank can only be used with --gain"),
        (["--metric", "kl"], "--metric is of the gain on held-out text"),
        (["--gain", "0.9", "--ladder", "0", "--eval", "TEXT"], "--ladder must be ranks of at least 1"),
    ],
)
@pytest.mark.parametrize("name", ["extract", "resize"])
def test_options_that_do_not_belong_together_are_refused(tiny, tuned, held_text, tmp_path, *, name, options, said):
    extract(tiny, tuned, rank=1, output=tmp_path / "adapter")
    sources = [tiny, tuned] if name == "extract" else [tmp_path / "adapter"]
    given = [held_text if option == "TEXT" else option for option in options]
    ended = run(name, *sources, "-o", tmp_path / "out", *given)
    assert ended.exit_code == 1, ended.stderr
    assert said in ended.stderr
    assert not (tmp_path / "out").exists()
