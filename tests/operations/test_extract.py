"""Extraction: what comes back, how good it is, and that the real PEFT agrees."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import eckart.operations.extraction.work as work_module
from eckart.adapter import Adapter, AdapterLayer
from eckart.engine import Execution
from eckart.errors import MismatchError, NotFiniteError, OptionError, OutputError
from eckart.formats import load_adapter
from eckart.operations import Budget, RankChoice, extract, merge, plan_extract, resize


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_fine_tune_that_is_exactly_rank_8_comes_back_as_rank_8(llama_pair, tmp_path):
    found = extract(llama_pair / "base", llama_pair / "tuned", error=1e-4, output=tmp_path / "out")
    assert {layer.rank for layer in found.layers} == {8}
    assert len(found.layers) == 14
    base, tuned = weights(llama_pair / "base"), weights(llama_pair / "tuned")
    for module, layer in load_adapter(tmp_path / "out").items():
        torch.testing.assert_close(
            base[f"{module}.weight"] + layer.delta(), tuned[f"{module}.weight"], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("rank", [1, 3, 8, 500])
def test_the_error_reported_is_the_error_of_the_written_factors(llama_pair, tmp_path, rank):
    found = extract(llama_pair / "base", llama_pair / "tuned", rank=rank, output=tmp_path / "out")
    base, tuned = weights(llama_pair / "base"), weights(llama_pair / "tuned")
    for record in found.layers:
        update = (tuned[f"{record.name}.weight"] - base[f"{record.name}.weight"]).double()
        error = (update - found.adapter[record.name].delta().double()).norm() / update.norm()
        best = torch.linalg.svdvals(update)[record.rank :].norm() / update.norm()
        assert record.error == pytest.approx(float(error), rel=1e-4, abs=2e-7)
        assert record.error_lower_bound <= float(best) * (1 + 1e-9) + 1e-12
        assert record.error <= float(best) * (1 + 1e-4) + 2e-6
        assert record.rank == min(rank, *record.shape)


def test_energy_and_error_take_the_smallest_rank_of_each_matrix(llama_pair):
    base, tuned = weights(llama_pair / "base"), weights(llama_pair / "tuned")
    for choice in (RankChoice(energy=0.7), RankChoice(error=0.6)):
        records = extract(base, tuned, rank=choice).layers
        assert len(records) == 14
        for record in records:
            values = torch.linalg.svdvals((tuned[f"{record.name}.weight"] - base[f"{record.name}.weight"]).double())
            shares = values.square().cumsum(0) / values.square().sum()
            enough = shares >= 0.7 if choice.energy else (1 - shares).clamp_min(0).sqrt() < 0.6
            assert record.rank == int(enough.int().argmax()) + 1


@pytest.mark.parametrize("text", ["2k", "3000", "20kB", "0.05MB"])
def test_a_budget_is_kept_and_used(llama_pair, tmp_path, text):
    budget = Budget.parse(text)
    found = extract(llama_pair / "base", llama_pair / "tuned", budget=text, output=tmp_path / "out")
    used = (tmp_path / "out/adapter_model.safetensors").stat().st_size if budget.in_bytes else found.adapter.params
    assert used <= budget.amount
    assert found.adapter.params >= 0.6 * (budget.amount / 4 - 14 * 128 if budget.in_bytes else budget.amount)
    assert found.guarantee is not None


def test_a_budget_too_small_for_one_rank_is_refused(llama_pair):
    with pytest.raises(OptionError, match="raise `budget`"):
        extract(weights(llama_pair / "base"), weights(llama_pair / "tuned"), budget=10)


def drawn_pair(count=6, shape=(12, 9)):
    """A base of zeros, and a fine-tune whose matrices differ in size and in how fast their spectra fall."""
    generator = torch.Generator().manual_seed(0)
    base = {f"m.{i}.weight": torch.zeros(shape) for i in range(count)}
    return base, {name: torch.randn(shape, generator=generator) / (1 + i) for i, name in enumerate(base)}


def test_matrices_that_a_budget_gives_no_rank_count_in_the_error():
    base, tuned = drawn_pair()
    result = extract(base, tuned, budget=6 * 21)
    layers = [AdapterLayer(torch.eye(9), update, 9) for update in tuned.values()]
    expected = resize(Adapter(dict(zip((f"m.{i}" for i in range(6)), layers, strict=True))), budget=6 * 21)
    assert [layer.rank for layer in result.layers] == [layer.rank for layer in expected.layers]
    assert 0 in {layer.rank for layer in result.layers}
    total = sum(float(update.double().norm()) ** 2 for update in tuned.values())
    missed = sum(
        float((update - result.adapter[f"m.{i}"].delta() if f"m.{i}" in result.adapter else update).double().norm())
        ** 2
        for i, update in enumerate(tuned.values())
    )
    assert result.error == pytest.approx((missed / total) ** 0.5, rel=1e-5)
    assert result.error_lower_bound == pytest.approx(expected.error_lower_bound, rel=1e-6)
    for layer, update in zip(result.layers, tuned.values(), strict=True):
        assert layer.fro_norm == pytest.approx(float(update.norm()), rel=1e-6)


@pytest.mark.parametrize(("rank", "warns"), [(5, False), (6, True), (500, True)])
def test_ranks_above_break_even_are_reported_with_their_numbers(rank, warns):
    progress = Notes()
    result = extract(*drawn_pair(), rank=rank, execution=Execution(progress=progress))
    assert progress.notes == list(result.notes)
    assert bool(result.notes) == warns
    if warns:
        params = 6 * 21 * min(rank, 9)
        for part in ("6 of 6 layers", "rank 5", f"{params:,} parameters for matrices of 648"):
            assert part in result.notes[0]


def test_a_changed_bias_outlives_a_matrix_that_did_not_change():
    base, tuned = drawn_pair(2)
    base |= {f"m.{i}.bias": torch.zeros(12) for i in range(2)}
    tuned |= {"m.0.weight": base["m.0.weight"], "m.0.bias": torch.arange(12.0), "m.1.bias": torch.ones(12)}
    for options in ({"rank": 2}, {"budget": "2k"}):
        result = extract(base, tuned, modules_to_save="bias", **options)
        assert torch.equal(result.adapter["m.0"].bias, torch.arange(12.0))
        assert not result.adapter["m.0"].delta().any()


@pytest.fixture(scope="module")
def qwen2_pair(tmp_path_factory):
    """A model where only some linear layers have a bias, and a fine-tune of every matrix and of half of the biases."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1)
    model, folder = transformers.Qwen2ForCausalLM(config), tmp_path_factory.mktemp("qwen2")
    for name in ("base", "tuned"):
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                if "proj" in key and "k_proj.bias" not in key:
                    tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(key))))
        model.save_pretrained(folder / name)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_changed_biases_of_some_layers_only_reach_peft_and_a_merge(qwen2_pair, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base, tuned = (str(qwen2_pair / name) for name in ("base", "tuned"))
    found = extract(base, tuned, rank=16, modules_to_save="bias", output=tmp_path / "adapter")
    assert sorted(load_adapter(tmp_path / "adapter").modules_to_save) == [
        f"model.layers.0.self_attn.{part}_proj.bias" for part in "qv"
    ]
    assert found.error < 1e-5
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    tokens, load = torch.arange(12)[None], transformers.Qwen2ForCausalLM.from_pretrained
    adapted = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    with torch.no_grad():
        expected = load(tuned)(tokens).logits
        for model in (adapted, load(tmp_path / "merged")):
            torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"target": "attention"}, {"exclude": "mlp"}, {"modules_to_save": "norm"}])
def test_a_string_is_one_pattern(llama_pair, options):
    base, tuned = weights(llama_pair / "base"), weights(llama_pair / "tuned")
    tuned["model.norm.weight"] = tuned["model.norm.weight"] + 0.1
    as_list = {name: [pattern] for name, pattern in options.items()}
    one, other = (plan_extract(base, tuned, **each).parts for each in (options, as_list))
    assert (one.matrices, one.saved) == (other.matrices, other.saved)


def test_the_base_is_named_by_its_absolute_path(llama_pair, tmp_path, monkeypatch):
    monkeypatch.chdir(llama_pair)
    extract("base", "tuned", rank=1, output=tmp_path / "out")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llama_pair / "base")


def test_a_peft_adapter_is_not_written_to_the_name_of_a_file(llama_pair, tmp_path):
    with pytest.raises(OutputError, match="a PEFT adapter is a folder"):
        extract(llama_pair / "base", llama_pair / "tuned", rank=1, output=tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_in_place_of_a_fine_tune_is_named_as_such(llama_pair, tmp_path):
    extract(llama_pair / "base", llama_pair / "tuned", rank=1, output=tmp_path / "out")
    with pytest.raises(OptionError, match="out is an adapter, not a fine-tuned model"):
        extract(llama_pair / "base", tmp_path / "out", rank=1)


def test_a_preview_shows_ranks_and_sizes_from_headers(llama_pair, tmp_path):
    pair = llama_pair / "base", llama_pair / "tuned"
    preview = plan_extract(*pair, rank=5).preview()
    assert {match.rank for match in preview.matches} == {5}
    assert preview.written_bytes >= extract(*pair, rank=5).nbytes
    by_energy = plan_extract(*pair, energy=0.9).preview()
    assert {match.rank for match in by_energy.matches} == {None}
    assert by_energy.notes == ["The spectra decide the ranks."]


def test_a_result_has_a_row_per_layer_and_a_short_repr(llama_pair):
    result = extract(llama_pair / "base", llama_pair / "tuned", rank=2)
    assert [row["name"] for row in result.rows()] == list(result.adapter)
    assert set(result.rows()[0]) == {"name", "shape", "rank", "error", "error_lower_bound", "signal_rank"}
    assert len(repr(result)) < 500


@pytest.mark.parametrize("module", ["extraction.extract", "resizing.resize", "combination.combine"])
def test_a_plan_loads_no_module_that_works_on_tensors(module):
    work = [f"eckart.operations.{name}" for name in (f"{module.partition('.')[0]}.work", "ranks", "factors")]
    code = f"import sys, eckart.operations.{module}; sys.exit(any(name in sys.modules for name in {work}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("balanced", [True, False])
def test_narrow_factors_keep_the_product_to_their_precision(llama_pair, tmp_path, dtype, balanced):
    out, torch_dtype = tmp_path / "out", getattr(torch, dtype)
    found = extract(llama_pair / "base", llama_pair / "tuned", rank=8, output=out, dtype=dtype, balanced=balanced)
    eps = torch.finfo(torch_dtype).eps
    assert len(found.layers) == 14
    for record in found.layers:
        layer = found.adapter[record.name]
        assert layer.lora_A.dtype == layer.lora_B.dtype == torch_dtype
        assert record.error < 1.5 * eps
        if not balanced:
            identity = layer.lora_A.double() @ layer.lora_A.double().T
            torch.testing.assert_close(identity, torch.eye(8).double(), rtol=0, atol=4 * eps)


def test_every_tensor_is_in_the_adapter_or_skipped_with_a_reason(llama_pair):
    base, tuned = weights(llama_pair / "base"), weights(llama_pair / "tuned")
    tuned["model.norm.weight"] = tuned["model.norm.weight"] + 0.1
    found = extract(base, tuned, rank=2, target="attention", execution=Execution(progress=(progress := Notes())))
    covered = {f"{name}.weight" for name in found.adapter}
    reasons = {item.name: item.reason for item in found.skipped}
    assert covered | set(reasons) == set(tuned)
    assert not covered & set(reasons)
    assert reasons["model.norm.weight"] == "norm"
    assert reasons["model.layers.0.input_layernorm.weight"] == "unchanged"
    assert reasons["model.layers.0.mlp.up_proj.weight"] == "not targeted"
    assert (
        progress.notes
        == list(found.notes)
        == [
            "1 changed tensor skipped (norm): `modules_to_save=norm` includes them",
            "6 changed tensors skipped (not targeted): `target` includes them",
        ]
    )


def test_changed_norms_are_kept_whole_when_asked(llama_pair, tmp_path):
    base, tuned = weights(llama_pair / "base"), weights(llama_pair / "tuned")
    tuned["model.norm.weight"] = tuned["model.norm.weight"] + 0.1
    extract(base, tuned, rank=2, output=tmp_path / "out", modules_to_save="norm")
    again = load_adapter(tmp_path / "out")
    assert list(again.modules_to_save) == ["model.norm.weight"]
    torch.testing.assert_close(again.modules_to_save["model.norm.weight"], tuned["model.norm.weight"])
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["modules_to_save"] == ["model.norm"]


def test_identical_checkpoints_are_refused(llama_pair, tmp_path):
    shutil.copytree(llama_pair / "base", tmp_path / "copy")
    with pytest.raises(MismatchError, match="identical in all 14 targeted matrices"):
        extract(llama_pair / "base", tmp_path / "copy", rank=2, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_matrix_that_did_not_change_is_skipped(llama_pair):
    base, tuned = weights(llama_pair / "base"), weights(llama_pair / "tuned")
    name = "model.layers.1.mlp.up_proj.weight"
    tuned[name] = base[name]
    found = extract(base, tuned, rank=2)
    assert name.removesuffix(".weight") not in found.adapter
    assert (name, "unchanged") in [(item.name, item.reason) for item in found.skipped]


def test_all_faults_of_a_mismatched_pair_are_in_one_message(llama_pair, tmp_path):
    tuned = weights(llama_pair / "tuned")
    del tuned["model.layers.0.mlp.up_proj.weight"]
    tuned["model.embed_tokens.weight"] = torch.zeros(97, 65)
    tuned["extra.weight"] = torch.zeros(3, 3)
    with pytest.raises(MismatchError) as refusal:
        extract(weights(llama_pair / "base"), tuned, rank=2, output=tmp_path / "out")
    for part in ("up_proj", "shape (97, 64) in the base, (97, 65)", "`exclude=model.embed_tokens`", "extra.weight"):
        assert part in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stops_with_its_tensor_and_count(llama_pair, tmp_path, value):
    tuned = weights(llama_pair / "tuned")
    tuned["model.layers.1.mlp.up_proj.weight"][3, :2] = value
    with pytest.raises(NotFiniteError, match=r"layers\.1\.mlp\.up_proj contains 2 values"):
        extract(weights(llama_pair / "base"), tuned, rank=2, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_refused_unless_forced(llama_pair, tmp_path):
    out = tmp_path / "out"
    extract(llama_pair / "base", llama_pair / "tuned", rank=2, output=out)
    with pytest.raises(OutputError):
        extract(llama_pair / "base", llama_pair / "tuned", rank=3, output=out)
    assert {layer.rank for layer in load_adapter(out).values()} == {2}
    extract(llama_pair / "base", llama_pair / "tuned", rank=3, output=out, force=True)
    assert {layer.rank for layer in load_adapter(out).values()} == {3}
    assert not (tmp_path / "out.partial").exists()


class Notes:
    """Progress that remembers what it was told."""

    def __init__(self):
        self.done, self.notes = [], []

    def start(self, stage, total, unit):
        self.done = []

    def update(self, amount, detail=""):
        self.done.append(detail)

    def note(self, message):
        self.notes.append(message)

    def finish(self):
        pass


def test_an_interrupted_run_resumes_where_it_stopped(llama_pair, tmp_path, monkeypatch):
    base, tuned, out = llama_pair / "base", llama_pair / "tuned", tmp_path / "out"
    whole = extract(base, tuned, rank=4)
    real, calls = work_module.factor, []

    def failing(matrix, *arguments, **options):
        calls.append(matrix.view.name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(matrix, *arguments, **options)

    monkeypatch.setattr(work_module, "factor", failing)
    with pytest.raises(KeyboardInterrupt):
        extract(base, tuned, rank=4, output=out, execution=Execution(workers=1))
    assert not out.exists()
    monkeypatch.setattr(work_module, "factor", real)
    told = Notes()
    found = extract(base, tuned, rank=4, output=out, execution=Execution(workers=1, progress=told))
    assert told.notes == ["resuming: 5 of 14 matrices are already done"]
    assert len(told.done) == 9
    for name, layer in whole.adapter.items():
        torch.testing.assert_close(found.adapter[name].delta(), layer.delta(), rtol=0, atol=1e-7)
    assert not (tmp_path / "out.partial").exists()


def test_a_changed_input_starts_over_and_says_so(llama_pair, tmp_path, monkeypatch):
    out = tmp_path / "out"
    tuned = tmp_path / "tuned"
    shutil.copytree(llama_pair / "tuned", tuned)
    real = work_module.factor
    calls = []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(work_module, "factor", failing)
    with pytest.raises(KeyboardInterrupt):
        extract(llama_pair / "base", tuned, rank=4, output=out, execution=Execution(workers=1))
    monkeypatch.setattr(work_module, "factor", real)
    changed = {name: tensor * 1.01 for name, tensor in weights(tuned).items()}
    save_file(changed, tuned / "model.safetensors", metadata={"format": "pt"})
    told = Notes()
    extract(llama_pair / "base", tuned, rank=4, output=out, execution=Execution(workers=1, progress=told))
    assert told.notes == [
        "5 changed tensors skipped (norm): `modules_to_save=norm` includes them",
        "1 changed tensor skipped (not targeted): `target` includes them",
        "starting over: inputs or options changed",
    ]
    assert len(told.done) == 14


def test_results_do_not_depend_on_the_number_of_workers(llama_pair):
    one, two = (
        extract(llama_pair / "base", llama_pair / "tuned", rank=3, execution=Execution(workers=workers))
        for workers in (1, 2)
    )
    for name, layer in one.adapter.items():
        torch.testing.assert_close(two.adapter[name].delta(), layer.delta(), rtol=0, atol=1e-6)
    assert [layer.name for layer in one.layers] == [layer.name for layer in two.layers]
