"""`eckart combine` as a user meets it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from eckart import evaluation
from eckart.adapter import Adapter, AdapterLayer
from eckart.cli.main import app
from eckart.formats import load_adapter
from eckart.operations import extract


def eckart(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(folder: Path, *names: str, seed: int = 0, shape: tuple[int, int] = (40, 24)) -> Path:
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: AdapterLayer(
            torch.randn(4, shape[1], generator=generator), torch.randn(shape[0], 4, generator=generator), 8.0
        )
        for name in names
    }
    Adapter(layers).save(folder)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "one", "a.q_proj", "b.q_proj"), write(tmp_path / "two", "b.q_proj", "c.q_proj", seed=1)


def test_a_weighted_sum_is_written_and_reported(two, tmp_path):
    ended = eckart("combine", *two, "-o", tmp_path / "out", "--weights", "-0.5,2")
    assert ended.exit_code == 0, ended.stderr
    assert "3 layers" in ended.stdout
    one, other = map(load_adapter, two)
    found = load_adapter(tmp_path / "out")["b.q_proj"]
    expected = -0.5 * one["b.q_proj"].delta() + 2 * other["b.q_proj"].delta()
    torch.testing.assert_close(found.delta(), expected)
    assert found.rank == 8


def test_json_holds_the_fields_scripts_rely_on(two, tmp_path):
    out = tmp_path / "out"
    ended = eckart("combine", *two, "-o", out, "--method", "ties", "--density", 0.3, "--rank", 2, "--json")
    result = json.loads(ended.stdout)
    assert result["format"] == "eckart-combine/2"
    assert [layer["name"] for layer in result["layers"]] == ["a.q_proj", "b.q_proj", "c.q_proj"]
    assert {layer["rank"] for layer in result["layers"]} == {2}
    assert all(0 < layer["error_lower_bound"] <= layer["error"] < 1 for layer in result["layers"])
    assert result["bytes"] == sum(file.stat().st_size for file in out.glob("adapter_*"))


def test_a_dry_run_shows_the_ranks_and_writes_nothing(two, tmp_path):
    options = ("-o", tmp_path / "out", "--dry-run")
    assert "3 modules match" in eckart("combine", *two, *options).stdout
    preview = json.loads(eckart("combine", *two, *options, "--json").stdout)
    assert preview["format"] == "eckart-combine-preview/2"
    assert [match["ranks"] for match in preview["matches"]] == [[4, 0], [4, 4], [0, 4]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights", "1"], "1 weights for 2 adapters"),
        (["--weights", "1,nan"], "weight 2 is nan"),
        (["--weights", "a,b"], "--weights must be one number per adapter, such as 0.5,0.5, got a,b"),
        (["--weights", "0,0"], "every weight is zero"),
        (["--method", "ties", "--density", 1.5], "(0, 1]"),
        (["--density", 0.5], "prunes nothing"),
        (["--rank", 2, "--error", 0.1], "exactly one way"),
        (["--base", "nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(two, tmp_path, options, said):
    ended = eckart("combine", *two, "-o", tmp_path / "out", *options)
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_an_unknown_method_is_wrong_usage(two, tmp_path):
    ended = eckart("combine", *two, "-o", tmp_path / "out", "--method", "svd")
    assert ended.exit_code == 2
    assert "'svd' is not one of 'sum', 'ties', 'dare', 'magnitude', 'tsv'" in ended.stderr


def test_shapes_that_differ_are_all_named(tmp_path):
    one, other = write(tmp_path / "one", "a", "b"), write(tmp_path / "two", "a", "b", shape=(40, 25))
    ended = eckart("combine", one, other, "-o", tmp_path / "out")
    assert ended.exit_code == 1
    assert all(
        f"{name}: the shapes differ: (40, 24) in adapter 1, (40, 25) in adapter 2" in ended.stderr for name in "ab"
    )


def test_an_adapter_less_itself_is_refused(two, tmp_path):
    ended = eckart("combine", two[0], two[0], "-o", tmp_path / "out", "--weights", "1,-1")
    assert ended.exit_code == 1
    assert "its updates cancel" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_scales_that_sources_state_are_folded_or_kept(two, tmp_path):
    first = load_adapter(two[0])
    layers = dict(first) | {"a.q_proj": AdapterLayer(first["a.q_proj"].lora_A, first["a.q_proj"].lora_B, 3.0)}
    Adapter(layers, keep_scales=True).save(tmp_path / "scaled")
    sources = (tmp_path / "scaled", write(tmp_path / "third", "c.q_proj", seed=2))
    for output, flags in (("folded", ()), ("kept", ("--keep-scales",))):
        ended = eckart("combine", *sources, "-o", tmp_path / output, *flags)
        assert ended.exit_code == 0, ended.stderr
        config = json.loads((tmp_path / output / "adapter_config.json").read_text())
        assert bool(config.get("alpha_pattern")) == bool(flags)
        torch.testing.assert_close(load_adapter(tmp_path / output)["a.q_proj"].delta(), layers["a.q_proj"].delta())


# Gains kept on text.


@pytest.fixture
def on_text(model, text, tmp_path) -> tuple[Path, Path, Path]:
    """Two adapters of a tiny model, and a text."""
    for name, seed in (("first", 1), ("second", 2)):
        generator = torch.Generator().manual_seed(seed)
        weights = load_file(model / "model.safetensors")
        tuned = shutil.copytree(model, tmp_path / f"tuned-{name}")
        changed = {n: w + 0.02 * torch.randn(w.shape, generator=generator).to(w) for n, w in weights.items()}
        save_file(changed, tuned / "model.safetensors", metadata={"format": "pt"})
        extract(model, tuned, rank=2, output=tmp_path / name)
    return tmp_path / "first", tmp_path / "second", text


def test_the_gain_kept_is_reported_for_each_text_and_on_the_card(on_text, tmp_path):
    first, second, text = on_text
    ended = eckart("combine", first, second, "-o", tmp_path / "out", "--eval", text, "--eval", text, "--json")
    assert ended.exit_code == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert [each["adapter"] for each in result["eval"]] == [str(first), str(second)]
    assert result["weights"] is None
    for each in result["eval"]:
        gain = each["base_loss"] - each["alone_loss"]
        expected = pytest.approx((each["base_loss"] - each["combined_loss"]) / gain) if gain > 0 else None
        assert each["gain_kept"] == expected
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("Gain kept" in card) == any(each["gain_kept"] is not None for each in result["eval"])
    table = eckart("combine", first, second, "-o", tmp_path / "again", "--eval", text, "--eval", text).stdout
    assert "gain kept" in table
    assert f"{result['eval'][0]['combined_loss']:.4f}" in table


def test_of_records_only_completions_count(on_text, model, tmp_path):
    first, second, text = on_text
    words = text.read_text().split()
    rows = [{"prompt": " ".join(words[i : i + 9]), "completion": words[i + 9]} for i in range(0, 60, 10)]
    records = tmp_path / "records.jsonl"
    records.write_text("\n".join(map(json.dumps, rows)))
    options = ("--eval", records, "--eval", text, "--json")
    ended = eckart("combine", first, second, "-o", tmp_path / "out", *options)
    assert ended.exit_code == 0, ended.stderr
    counted, whole = (each["tokens"] for each in json.loads(ended.stdout)["eval"])
    completions = [evaluation.load_tokenizer(model)(row["completion"])["input_ids"] for row in rows]
    assert sum(map(len, completions)) <= counted <= sum(len(ids) + 1 for ids in completions) < whole


def test_weights_are_searched_on_one_half_of_each_text_and_measured_on_the_other(on_text, model, tmp_path, monkeypatch):
    first, second, text = on_text
    texts, original = [], evaluation.text_losses

    def losses(base, contents, **options):
        texts.append(list(contents))
        return original(base, contents, **options)

    monkeypatch.setattr(evaluation, "text_losses", losses)
    options = ("--eval", text, "--eval", text, "--weights", "auto", "--method", "tsv", "--json")
    ended = eckart("combine", first, second, "-o", tmp_path / "out", *options)
    if ended.exit_code:
        assert "no adapter is better than the base" in ended.stderr
        pytest.fail(ended.stderr)
    result = json.loads(ended.stdout)
    assert len(result["weights"]) == 2
    whole = evaluation.load_tokenizer(model)(text.read_text())["input_ids"]
    for halves in zip(*texts, strict=True):
        ids = [token for half in halves for window in half.sequences for token in window]
        assert ids[: len(whole)] == whole
    by_hand = eckart(
        *("combine", first, second, "-o", tmp_path / "by-hand", "--method", "tsv"),
        *("--weights", ",".join(map(repr, result["weights"]))),
    )
    assert by_hand.exit_code == 0, by_hand.stderr
    assert load_adapter(tmp_path / "by-hand") == load_adapter(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--eval", "text.txt"], "1 texts for 2 adapters; --eval takes one for each"),
        (["--weights", "auto"], "--weights auto chooses weights by the gains they keep; name a text"),
        (["--eval", "text.txt", "--eval", "nowhere.txt"], "nowhere.txt"),
        (["--eval", "text.txt", "--eval", "text.txt", "--weights", "auto", "--shard", "1/2"], "exclude each other"),
        (["--eval", "text.txt", "--eval", "text.txt", "--method", "shared", "--error", "0.1"], "one --rank"),
    ],
)
def test_texts_that_cannot_judge_are_refused_before_any_work(on_text, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    ended = eckart("combine", *on_text[:2], "-o", tmp_path / "out", *options)
    assert ended.exit_code == 1
    assert said in ended.stderr
    assert not (tmp_path / "out").exists()


def test_adapters_that_name_no_model_need_it_for_a_text(two, text, tmp_path):
    ended = eckart("combine", *two, "-o", tmp_path / "out", "--eval", text, "--eval", text)
    assert ended.exit_code == 1
    assert "give it as --base" in ended.stderr
