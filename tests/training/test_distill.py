"""Distillation of truncated adapters on a tiny Llama and its fine-tune."""

import math
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from eckart.adapter import Adapter
from eckart.errors import EckartError, MismatchError, NotFiniteError, OptionError
from eckart.evaluation import load_model, text_loss
from eckart.formats import load_adapter
from eckart.nn import adapter_applied, adapter_of, eject, inject_adapter
from eckart.operations import extract, resize
from eckart.training import Distillation, FinetuneSettings, distill, finetune, pack_texts
from eckart.training.distiller import SHORT, _Watch, hold_out
from eckart.training.divergence import summed_agreement, turn_into_gradient

from .tiny import Reports, words

SETTINGS = replace(SHORT, steps=30)


@pytest.fixture(scope="session")
def tuned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after it has learnt the words."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(tiny), load_model(tiny)
    sequences = pack_texts([words(3000, seed=1)], tokenizer, length=32)
    finetune(model, sequences, FinetuneSettings(steps=60, batch_size=8, learning_rate=1e-2))
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def sequences(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    return pack_texts([words(3000, seed=2)], tokenizer, length=32)


@pytest.fixture
def student(tiny: Path, tuned: Path) -> nn.Module:
    """The base with the rank-1 adapter of the fine-tune."""
    model = load_model(tiny)
    inject_adapter(model, extract(tiny, tuned, rank=1).adapter)
    return model


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    return {f"{name}.{part}": value for name, layer in adapter.items() for part, value in layer.tensors().items()}


def same(first: Adapter, second: Adapter) -> bool:
    a, b = tensors_of(first), tensors_of(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- the divergence


@pytest.mark.parametrize("rows", [1, 128, 300])
def test_the_gradient_is_that_of_autograd_and_the_kl_that_of_torch(rows):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, 37, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(rows, 37, generator=generator, dtype=torch.float64)
    expected = nn.functional.kl_div(
        logits.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    expected.backward()
    buffer = teacher.clone()
    assert turn_into_gradient(buffer, logits.detach()) == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(buffer, logits.grad, atol=1e-6 / rows, rtol=0)


def test_a_model_agrees_with_itself_wholly_and_its_loss_is_the_cross_entropy():
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(200) % 50
    kl, loss = summed_agreement(logits, logits, targets).tolist()
    assert kl == 0
    assert loss == pytest.approx(
        nn.functional.cross_entropy(logits.double(), targets, reduction="sum").item(), rel=1e-6
    )


# ---- live models


def test_training_lowers_the_kl_on_text_it_has_not_seen_and_moves_lora_A_and_lora_B_alone(student, tuned, sequences):
    before = adapter_of(student)
    kept = {name: value.clone() for name, value in student.state_dict().items() if ".lora_" not in name}
    result = distill(student, load_model(tuned), sequences, SETTINGS)
    assert result.kept
    assert result.after is not None
    assert result.after.kl < 0.8 * result.before.kl
    assert len(result.losses) == SETTINGS.steps
    after = adapter_of(student)
    assert all(after[name].rank == layer.rank and after[name].alpha == layer.alpha for name, layer in before.items())
    assert not same(before, after)
    state = student.state_dict()
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_reported_losses_and_kl_are_those_of_the_held_out_sequences(student, tuned, sequences):
    teacher = load_model(tuned)
    result = distill(student, teacher, sequences, SETTINGS)
    held_out = sequences[-math.ceil(0.15 * len(sequences)) :]
    assert len(held_out) <= 2048 // 32
    with torch.no_grad():
        logits, goal = (model(input_ids=held_out).logits[:, :-1].double() for model in (student, teacher))
    kl = nn.functional.kl_div(logits.log_softmax(-1), goal.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert result.after is not None
    assert result.after.kl == pytest.approx(kl.mean().item(), rel=1e-4)

    def loss(model):
        return sum(text_loss(model, row).nats_per_token for row in held_out) / len(held_out)

    assert result.tokens == held_out[:, 1:].numel()
    assert result.teacher_loss == pytest.approx(loss(teacher), rel=1e-5)
    assert result.after.loss == pytest.approx(loss(student), rel=1e-5)
    eject(student)
    assert result.base_loss == pytest.approx(loss(student), rel=1e-5)
    told = result.to_json()
    gain = (told["base_loss"] - told["loss_after"]) / (told["base_loss"] - told["teacher_loss"])
    assert told["gain_recovered_after"] == pytest.approx(gain)
    assert told["gain_recovered_after"] > told["gain_recovered_before"]


def test_a_held_out_sequence_is_never_trained_on(student, tuned, sequences):
    training, held_out = hold_out(sequences)
    spoilt = sequences.clone()
    spoilt[len(training) :] = sequences[: len(sequences) - len(training)]
    model = load_model(tuned)
    runs = []
    for text in (sequences, spoilt):
        copy = load_model(student.config._name_or_path)
        inject_adapter(copy, adapter_of(student))
        runs.append(distill(copy, model, text, SETTINGS).losses)
    assert runs[0] == runs[1]
    assert not any((row == training).all(dim=1).any() for row in held_out)


@pytest.mark.parametrize(
    ("rate", "said"), [(30.0, "did not fall"), (1e25, "at step")], ids=["useless steps", "steps that end in NaN"]
)
def test_a_training_that_does_not_help_is_undone_bit_for_bit(student, tuned, sequences, rate, said):
    before = adapter_of(student)
    result = distill(student, load_model(tuned), sequences, replace(SETTINGS, learning_rate=rate))
    assert not result.kept
    assert said in str(result.note)
    assert same(before, adapter_of(student))
    assert (result.after is None) == (rate > 1e20)


def test_where_the_student_predicts_what_the_teacher_does_nothing_is_kept(student, sequences):
    before = adapter_of(student)
    result = distill(student, {"default": 1.0}, sequences, SETTINGS)
    assert result.before.kl == 0
    assert not result.kept
    assert same(before, adapter_of(student))


def test_one_model_with_two_adapters_is_student_and_teacher(tiny, tuned, sequences):
    adapters = {rank: extract(tiny, tuned, rank=rank).adapter for rank in (1, 8)}
    one, two, other = load_model(tiny), load_model(tiny), load_model(tiny)
    inject_adapter(one, adapters[1])
    inject_adapter(one, adapters[8], name="teacher", trainable=False)
    inject_adapter(two, adapters[1])
    inject_adapter(other, adapters[8])
    within, between = distill(one, {"teacher": 1.0}, sequences, SETTINGS), distill(two, other, sequences, SETTINGS)
    assert within.kept
    assert within.losses == between.losses
    assert same(adapter_of(one), adapter_of(two))
    assert same(adapter_of(one, "teacher"), adapters[8])


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_steps_in_bfloat16_lead_where_those_in_float32_lead(student, tuned, sequences, compute_dtype):
    result = distill(student, load_model(tuned), sequences, replace(SETTINGS, compute_dtype=compute_dtype))
    assert result.after is not None
    assert result.after.kl < 0.8 * result.before.kl


def test_the_rate_follows_the_size_of_the_factors_whichever_of_them_carries_it(tiny, tuned, sequences):
    """Factors of other sizes with the same product: AdamW's steps are as large in each as its entries."""
    found = extract(tiny, tuned, rank=1).adapter
    results = []
    for size in (1.0, 8.0):
        layers = {
            n: replace(layer, lora_A=layer.lora_A * size, lora_B=layer.lora_B / size) for n, layer in found.items()
        }
        model = load_model(tiny)
        inject_adapter(model, replace(found, layers=layers))
        results.append(distill(model, load_model(tuned), sequences, replace(SETTINGS, steps=8)))
    assert results[1].losses == pytest.approx(results[0].losses, rel=1e-3)


def test_training_ends_when_the_held_out_kl_no_longer_falls_and_takes_the_best_factors():
    parameter, series = nn.Parameter(torch.zeros(1)), iter([3.0, 2.0, 2.5, 2.5, 1.0])

    def steps():
        for _ in range(100):
            with torch.no_grad():
                parameter.add_(1)
            yield float(parameter.detach())

    watch = _Watch(lambda: next(series), [parameter], 100)
    losses = list(watch.until_it_rises(steps()))
    assert len(losses) == 40
    assert watch.stopped
    assert watch.checks == {10: 3.0, 20: 2.0, 30: 2.5, 40: 2.5}
    watch.take_best()
    assert float(parameter.detach()) == 20


def test_an_interrupted_training_leaves_the_factors_as_they_were(student, tuned, sequences):
    before = adapter_of(student)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(student, load_model(tuned), sequences, SETTINGS, progress=Reports(1, stop))
    assert same(before, adapter_of(student))


def test_progress_is_reported_every_step(student, tuned, sequences):
    reports = Reports()
    result = distill(student, load_model(tuned), sequences, SETTINGS, progress=reports)
    assert reports.stages == [("Distilling", SETTINGS.steps, "steps")]
    assert reports.steps == list(range(1, SETTINGS.steps + 1))
    assert reports.details == [f"KL {kl:.4f}" for kl in result.losses]


def test_what_cannot_be_distilled_is_refused(student, tiny, tuned, sequences):
    teacher = load_model(tuned)
    for few in (sequences[:10], sequences[0], sequences[:0]):
        with pytest.raises(OptionError, match="needs more text"):
            distill(student, teacher, few)
    with pytest.raises(MismatchError, match="default"):
        distill(load_model(tiny), teacher, sequences)
    with pytest.raises(MismatchError, match="other"):
        distill(student, {"other": 1.0}, sequences)
    larger = load_model(tuned)
    larger.resize_token_embeddings(33, mean_resizing=False)
    with pytest.raises(MismatchError, match="one vocabulary, got 33 and 32 tokens"):
        distill(student, larger, sequences)
    with torch.no_grad():
        teacher.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="teacher"):
        distill(student, teacher, sequences)


# ---- from names, on the way to files

TEXT = words(3000, seed=2)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def weight(folder: Path, name: str) -> Tensor:
    return load_file(folder / "model.safetensors")[f"{name}.weight"].double()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_extraction_is_distilled_before_it_is_written_and_its_errors_are_those_of_the_files(tiny, tuned, tmp_path):
    plain = extract(tiny, tuned, rank=1, output=tmp_path / "plain")
    inputs = files_of(tiny) | files_of(tuned)
    distillation = Distillation(tiny, tuned, TEXT, SETTINGS)
    result = extract(tiny, tuned, rank=1, output=tmp_path / "out", refine=distillation)
    assert distillation.result is not None
    assert distillation.result.kept
    assert files_of(tiny) | files_of(tuned) == inputs
    written = load_adapter(tmp_path / "out")
    assert not same(written, plain.adapter)
    assert (written.base_model, written.task_type) == (str(tiny), "CAUSAL_LM")
    config = "adapter_config.json"
    assert (tmp_path / "out" / config).read_bytes() == (tmp_path / "plain" / config).read_bytes()
    for before, after in zip(plain.layers, result.layers, strict=True):
        change = weight(tuned, after.name) - weight(tiny, after.name)
        error = float((change - written[after.name].delta().double()).norm() / change.norm())
        assert after.error == pytest.approx(error, rel=1e-5)
        assert before.error < after.error
        assert after.error_lower_bound == before.error_lower_bound
    model = peft.PeftModel.from_pretrained(load_model(tiny), tmp_path / "out").eval()
    ours = load_model(tiny)
    ids = torch.arange(3, 19)[None]
    with torch.no_grad(), adapter_applied(ours, written):
        expected = ours(input_ids=ids).logits
        # PEFT multiplies by base and factors apart, so float32 rounds otherwise.
        torch.testing.assert_close(
            model(input_ids=ids).logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max())
        )


def test_what_the_text_does_not_bear_out_leaves_the_files_of_a_plain_extraction(tiny, tuned, tmp_path):
    distillation = Distillation(tiny, tuned, TEXT, replace(SETTINGS, learning_rate=3e4))
    plain = extract(tiny, tuned, rank=1, output=tmp_path / "plain")
    result = extract(tiny, tuned, rank=1, output=tmp_path / "out", refine=distillation)
    assert distillation.result is not None
    assert not distillation.result.kept
    assert files_of(tmp_path / "out") == files_of(tmp_path / "plain")
    assert result.layers == plain.layers


def test_tensors_saved_whole_are_in_place_while_their_adapter_trains_and_as_they_were_after(tiny, tuned, tmp_path):
    distillation = Distillation(tiny, tuned, TEXT, SETTINGS)
    plain = extract(tiny, tuned, rank=1, modules_to_save="norm")
    result = extract(tiny, tuned, rank=1, modules_to_save="norm", output=tmp_path / "out", refine=distillation)
    assert len(result.adapter.modules_to_save) == 5
    for name, tensor in plain.adapter.modules_to_save.items():
        assert torch.equal(result.adapter.modules_to_save[name], tensor)
    model = load_model(tiny)
    _, held_out = hold_out(distillation._sequences(model))
    for adapter, agreement in ((plain.adapter, "before"), (result.adapter, "after")):
        with adapter_applied(model, adapter):
            losses = [text_loss(model, row).nats_per_token for row in held_out]
        expected = getattr(distillation.result, agreement).loss
        assert sum(losses) / len(losses) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_narrow_adapter_is_judged_as_it_is_written(tiny, tuned, dtype):
    distillation = Distillation(tiny, tuned, TEXT, SETTINGS)
    result = extract(tiny, tuned, rank=1, dtype=dtype, refine=distillation)
    assert {layer.lora_A.dtype for layer in result.adapter.values()} == {dtype}
    again = Distillation(tiny, tuned, TEXT, SETTINGS)
    again(result.adapter)
    assert distillation.result is not None
    assert again.result is not None
    assert distillation.result.after is not None
    assert again.result.before.kl == pytest.approx(distillation.result.after.kl, rel=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_resized_adapter_is_distilled_towards_what_it_was(tiny, tuned, tmp_path, rslora):
    found = extract(tiny, tuned, rank=8).adapter
    alpha = 3 * 8**0.5 if rslora else 24.0
    layers = {
        name: replace(
            layer, lora_B=(layer.lora_B / 3).bfloat16(), lora_A=layer.lora_A.bfloat16(), alpha=alpha, rslora=rslora
        )
        for name, layer in found.items()
    }
    replace(found, layers=layers).save(tmp_path / "adapter")
    source = load_adapter(tmp_path / "adapter")
    distillation = Distillation(tiny, source, TEXT, SETTINGS)
    plain = resize(source, rank=1)
    result = resize(source, rank=1, output=tmp_path / "out", refine=distillation)
    assert distillation.result is not None
    assert distillation.result.after is not None
    assert distillation.result.kept
    assert distillation.result.after.kl < 0.8 * distillation.result.before.kl
    written = load_adapter(tmp_path / "out")
    for before, after in zip(plain.layers, result.layers, strict=True):
        old, new, target = plain.adapter[after.name], written[after.name], source[after.name].delta().double()
        assert (new.rank, new.alpha, new.rslora, new.lora_A.dtype) == (1, old.alpha, old.rslora, torch.bfloat16)
        error = float((target - new.delta().double()).norm() / target.norm())
        assert after.error == pytest.approx(error, rel=1e-5)
        assert after.error > before.error


def test_dora_is_distilled_with_its_magnitudes_as_they_are(tiny, tuned):
    layers = {
        name: replace(layer, magnitude=weight(tuned, name).norm(dim=1).float())
        for name, layer in extract(tiny, tuned, rank=4).adapter.items()
    }
    distillation = Distillation(tiny, Adapter(layers), TEXT, SETTINGS)
    result = resize(Adapter(layers), rank=1, refine=distillation).adapter
    assert distillation.result is not None
    assert distillation.result.kept
    for name, layer in result.items():
        torch.testing.assert_close(layer.magnitude, layers[name].magnitude, rtol=0, atol=0)


def test_a_padded_adapter_puts_its_spare_rank_to_use(tiny, tuned):
    source = extract(tiny, tuned, rank=2).adapter
    distillation = Distillation(tiny, extract(tiny, tuned, rank=8).adapter, TEXT, SETTINGS)
    result = resize(source, rank=4, refine=distillation)
    assert distillation.result is not None
    assert distillation.result.kept
    ranks = [int((layer.low_rank().svd()[1] > 1e-4).sum()) for layer in result.adapter.values()]
    assert min(ranks) == 4


def test_names_without_the_models_prefix_and_layers_of_gpt2_are_found(tokenizer, tmp_path):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64, n_inner=24))
    for name in ("base", "tuned"):
        base.transformer.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        finetune(base, pack_texts([TEXT], tokenizer, length=32), FinetuneSettings(steps=30, learning_rate=1e-2))
    distillation = Distillation(tmp_path / "base", tmp_path / "tuned", TEXT, SETTINGS)
    plain = extract(tmp_path / "base", tmp_path / "tuned", rank=1)
    result = extract(tmp_path / "base", tmp_path / "tuned", rank=1, refine=distillation)
    assert "h.0.attn.c_attn" in result.adapter
    assert distillation.result is not None
    assert distillation.result.kept
    assert not any(torch.equal(layer.lora_A, plain.adapter[name].lora_A) for name, layer in result.adapter.items())
    assert all(layer.error > plain.layers[i].error for i, layer in enumerate(result.layers))


def test_layers_that_share_a_weight_are_left_as_they_are(tiny, tokenizer, tmp_path):
    config = LlamaConfig.from_pretrained(tiny)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    base, other = tmp_path / "base", tmp_path / "other"
    for folder in (base, other):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        finetune(model, pack_texts([TEXT], tokenizer, length=32), FinetuneSettings(steps=30, learning_rate=1e-2))
    target = ["all-linear", "embed_tokens"]
    plain = extract(base, other, rank=1, target=target).adapter
    distillation = Distillation(base, other, TEXT, SETTINGS)
    result = extract(base, other, rank=1, target=target, refine=distillation).adapter
    assert distillation.result is not None
    assert distillation.result.kept
    same_factors = {name for name in plain if torch.equal(plain[name].lora_A, result[name].lora_A)}
    assert same_factors == {"model.embed_tokens", "lm_head"}


def test_a_text_that_is_too_short_is_refused_before_any_model_is_read(tiny):
    with pytest.raises(EckartError, match="1,500 tokens but needs 1,707"):
        Distillation(tiny, "no/such/model", words(1500))


def test_an_interrupted_distillation_leaves_no_adapter_and_the_next_resumes_from_the_factors(tiny, tuned, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(
            tiny,
            tuned,
            rank=1,
            output=tmp_path / "out",
            refine=Distillation(tiny, tuned, TEXT, SETTINGS, progress=Reports(1, stop)),
        )
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.partial").glob("*.safetensors"))) == 14
    result = extract(tiny, tuned, rank=1, output=tmp_path / "out", refine=Distillation(tiny, tuned, TEXT, SETTINGS))
    assert same(result.adapter, extract(tiny, tuned, rank=1, refine=Distillation(tiny, tuned, TEXT, SETTINGS)).adapter)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
