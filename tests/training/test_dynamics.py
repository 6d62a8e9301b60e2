"""What is recorded of a training, against dense float64 LAPACK on the updates themselves."""

import copy
import itertools
import json
import math

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from eckart.errors import FileFormatError, MismatchError, OutputError, SourceError
from eckart.nn import LoRAConfig, adapted_modules, adapter_of, inject
from eckart.training.dynamics import DynamicsRecorder, recording_steps
from eckart.training.trajectory import Dynamics, read_dynamics

DIRECTIONS = 4


class Block(nn.Module):
    """One of each kind, two of one shape; wide, tall and square."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(40, 12)
        self.first, self.second = nn.Linear(12, 20), nn.Linear(12, 20, bias=False)
        self.down = nn.Linear(20, 12)
        self.conv1d = Conv1D(18, 12)
        self.conv = nn.Conv2d(3, 10, 3)
        self.narrow = nn.Linear(12, 2)


MODULES = ("tokens", "first", "second", "down", "conv1d", "conv", "narrow")


def adapted(**options) -> nn.Module:
    model = Block()
    inject(model, LoRAConfig(rank=3, alpha=7.0, target=MODULES, rank_pattern={"narrow": 2}, **options))
    return model


def move(model: nn.Module, *, by: float = 0.1, seed: int = 1) -> nn.Module:
    """A step of training: every trained parameter goes somewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return model


def start_elsewhere(model: nn.Module) -> nn.Module:
    """Factors that begin away from zero, as PiSSA's do."""
    generator = torch.Generator().manual_seed(3)
    for module in adapted_modules(model).values():
        factors = module.factors("default")
        sides = (factors.lora_A, factors.lora_B)
        factors.start_at(*(torch.randn(side.shape, generator=generator) for side in sides))
    return model


MODELS = {
    "lora": adapted,
    "rslora": lambda: adapted(rslora=True),
    "dora": lambda: adapted(method="dora"),
    "started elsewhere": lambda: start_elsewhere(adapted()),
}


def dense(model: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Update and base weight of a module as (out, in) matrices, in float64."""
    layer, weight = adapter_of(model)[name], model.get_submodule(name).base_layer.weight.detach().double()
    A, B = layer.lora_A.double().flatten(1), layer.lora_B.double().flatten(1)
    if layer.kind in ("embedding", "conv1d"):
        weight = weight.T
    return layer.scaling * B @ A, weight.flatten(1)


@pytest.mark.parametrize("which", MODELS)
def test_every_number_is_that_of_the_dense_update(which):
    model = move(MODELS[which]())
    recorder = DynamicsRecorder(model, directions=DIRECTIONS)
    recorder.record(model, 5)
    assert [layer.name for layer in recorder.dynamics.layers] == list(MODULES)
    for layer in recorder.dynamics.layers:
        update, weight = dense(model, layer.name)
        assert layer.shape == tuple(update.shape)
        U, S, Vh = torch.linalg.svd(update, full_matrices=False)
        U0, S0, V0h = torch.linalg.svd(weight, full_matrices=False)
        count, k = len(layer.singular_values[0]), min(DIRECTIONS, *layer.shape)
        assert count == min(3 if which != "started elsewhere" else 6, *layer.shape)
        assert layer.singular_values[0] == pytest.approx(S[:count].tolist(), rel=1e-10)
        assert layer.norm[0] == pytest.approx(float(torch.linalg.norm(update)), rel=1e-12)
        assert layer.relative_norm[0] == pytest.approx(float(torch.linalg.norm(update) / torch.linalg.norm(weight)))
        assert layer.stable_rank[0] == pytest.approx(float((S / S[0]).square().sum()), rel=1e-12)
        share = S[:count] / S[:count].sum()
        assert layer.effective_rank[0] == pytest.approx(math.exp(-float((share * share.log()).sum())), rel=1e-10)
        assert layer.base_energy == pytest.approx([float(S0[:k].square().sum() / S0.square().sum())] * 2, rel=1e-5)
        for side, base, columns, size in (
            (layer.outputs, U0[:, :k], U, layer.shape[0]),
            (layer.inputs, V0h[:k].T, Vh.T, layer.shape[1]),
        ):
            assert side.chance == k / size
            inside = torch.linalg.norm((base.T @ columns) * S) ** 2 / S.square().sum()
            assert side.share[0] == pytest.approx(float(inside), rel=1e-5)
            leading = [j for j in (1, 2, 4) if j <= count]
            phi = [float(torch.linalg.norm(base.T @ columns[:, :j])) ** 2 / min(k, j) for j in leading]
            assert side.phi[0] == pytest.approx(phi, rel=1e-5)


@pytest.mark.parametrize("which", MODELS)
def test_before_the_first_step_every_update_is_zero_and_what_has_no_value_is_none(which):
    model = MODELS[which]()
    recorder = DynamicsRecorder(model, directions=DIRECTIONS)
    recorder.record(model, 0)
    for layer in recorder.dynamics.layers:
        assert (layer.norm, layer.relative_norm, layer.singular_values) == ([0.0], [0.0], [[]])
        assert (layer.effective_rank, layer.stable_rank) == ([None], [None])
        assert (layer.outputs.share, layer.outputs.phi, layer.inputs.share) == ([None], [None], [None])
        assert max(layer.A_norm[0], layer.B_norm[0]) > 0


def test_the_norms_are_those_of_the_trained_factors_and_doras_lengths_are_held_against_the_base():
    model = start_elsewhere(adapted(method="dora"))
    recorder = DynamicsRecorder(model, directions=0)
    recorder.record(model, 0)
    move(model)
    recorder.record(model, 1)
    for layer in recorder.dynamics.layers:
        factors = adapted_modules(model)[layer.name].factors("default")
        assert layer.A_norm[1] == pytest.approx(float(factors.lora_A.detach().norm()), rel=1e-6)
        assert layer.B_norm[1] == pytest.approx(float(factors.lora_B.detach().norm()), rel=1e-6)
        lengths = dense(model, layer.name)[1].norm(dim=1)
        moved = float((factors.magnitude.detach().flatten().double() - lengths).norm() / lengths.norm())
        assert layer.magnitude_change == pytest.approx([0.0, moved], rel=1e-4, abs=1e-6)
        assert layer.outputs is None


def test_only_the_chosen_steps_are_recorded_and_each_once():
    model = adapted()
    recorder = DynamicsRecorder(model, at=[0, 2, 5], directions=0)
    for step in (0, 1, 2, 2, 3, 4, 5):
        recorder.record(model, step)
    assert recorder.dynamics.steps == [0, 2, 5]
    assert {len(column) for layer in recorder.dynamics.layers for column in layer.columns()} == {3}
    with pytest.raises(ValueError, match="step 4 comes after step 5"):
        DynamicsRecorder(model, directions=0, earlier=recorder.dynamics).record(model, 4)


@pytest.mark.parametrize("total", [1, 2, 24, 25, 100, 1000, 100_000])
def test_recording_steps_hold_both_ends_few_others_and_the_first_steps(total):
    steps = recording_steps(total)
    assert (steps[0], steps[-1]) == (0, total)
    assert len(steps) == total + 1 if total <= 24 else 18 <= len(steps) <= 25
    assert steps == sorted(set(steps))
    assert {0, 1} <= set(steps)
    assert max(b - a for a, b in itertools.pairwise(steps)) <= max(1, math.ceil(total / 11))


def test_a_layer_whose_factors_are_not_finite_is_unknown_and_the_others_are_not():
    model = move(adapted())
    with torch.no_grad():
        adapted_modules(model)["first"].factors("default").lora_B[0, 0] = float("nan")
    recorder = DynamicsRecorder(model, directions=DIRECTIONS)
    recorder.record(model, 1)
    first, second = (layer for layer in recorder.dynamics.layers if layer.name in ("first", "second"))
    assert (first.norm, first.B_norm, first.singular_values, first.outputs.share) == ([None], [None], [None], [None])
    assert second.norm[0] == pytest.approx(float(dense(model, "second")[0].norm()), rel=1e-12)
    assert "NaN" not in json.dumps(recorder.to_json(), allow_nan=False)


def test_beside_a_base_weight_of_zero_there_is_neither_relative_norm_nor_alignment():
    model = move(adapted())
    with torch.no_grad():
        adapted_modules(model)["first"].base_layer.weight.zero_()
    recorder = DynamicsRecorder(model, directions=DIRECTIONS)
    recorder.record(model, 1)
    first, second = (layer for layer in recorder.dynamics.layers if layer.name in ("first", "second"))
    assert (first.base_energy, first.relative_norm, first.outputs.share, first.inputs.phi) == (
        None,
        [None],
        [None],
        [None],
    )
    assert first.norm[0] == pytest.approx(float(dense(model, "first")[0].norm()), rel=1e-12)
    assert second.outputs.share[0] is not None


def recorded() -> DynamicsRecorder:
    model = adapted(method="dora")
    recorder = DynamicsRecorder(model, directions=DIRECTIONS, title="a block")
    for step in range(4):
        recorder.record(model, step)
        recorder.log(step + 1, loss=3.0 - step, learning_rate=1e-3)
        move(model, seed=step)
    recorder.log(0, heldout_loss=3.5)
    recorder.log(2, gradient_norm=float("nan"))
    return recorder


def test_a_saved_record_reads_back_to_seven_digits(tmp_path):
    recorder = recorded()
    file = recorder.save(tmp_path)
    assert file == tmp_path / "dynamics.json"
    again = read_dynamics(tmp_path)
    assert again.to_json() == read_dynamics(file).to_json() == recorder.to_json() == json.loads(file.read_text())
    assert again.logged("loss") == ([1, 2, 3, 4], [3.0, 2.0, 1.0, 0.0])
    assert again.logged("heldout_loss") == ([0], [3.5])
    assert again.logged("gradient_norm") == ([], [])
    for ours, back in zip(recorder.dynamics.layers, again.layers, strict=True):
        assert back.norm == pytest.approx(ours.norm, rel=1e-6)
        assert back.shape == ours.shape
    with pytest.raises(OutputError, match="exists"):
        recorder.save(tmp_path)


def test_a_resumed_run_continues_as_if_it_had_not_stopped(tmp_path):
    whole, stopped = adapted(), adapted()
    unbroken, before = (DynamicsRecorder(model, directions=DIRECTIONS) for model in (whole, stopped))
    for step in range(6):
        unbroken.record(whole, step)
        unbroken.log(step, loss=float(step))
        if step < 5:  # one step further than the checkpoint
            before.record(stopped, step)
            before.log(step, loss=float(step))
        if step == 3:
            checkpoint = copy.deepcopy(stopped)
        move(whole, seed=step)
        move(stopped, seed=step)
    before.save(tmp_path)
    earlier = read_dynamics(tmp_path)
    earlier.forget_after(3)
    assert earlier.steps == [0, 1, 2, 3]
    after = DynamicsRecorder(checkpoint, directions=DIRECTIONS, earlier=earlier)
    for step in (3, 4, 5):
        after.record(checkpoint, step)
        after.log(step, loss=float(step))
        move(checkpoint, seed=step)
    found, expected = after.to_json(), unbroken.to_json()
    assert found["steps"] == expected["steps"]
    assert found["log"] == expected["log"]
    assert found["layers"] == expected["layers"]


def test_the_record_of_another_run_is_refused_with_every_difference():
    earlier = recorded().dynamics
    model = Block()
    inject(model, LoRAConfig(rank=2, target=("first", "down", "narrow")))
    with torch.no_grad():
        adapted_modules(model)["narrow"].base_layer.weight.mul_(2)
    with pytest.raises(MismatchError) as refusal:
        DynamicsRecorder(model, directions=8, earlier=earlier)
    for part in ("4 directions", "not 8", "conv is not in this model", "first has shape (20, 12) and rank 3", "norm"):
        assert part in str(refusal.value)
    with pytest.raises(MismatchError, match="second is not in the record"):
        DynamicsRecorder(adapted(), directions=8, earlier=DynamicsRecorder(model, directions=8).dynamics)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (None, SourceError, "does not exist"),
        ("{", FileFormatError, "not valid JSON"),
        ("[]", FileFormatError, "list"),
        ('{"format": "eckart-sweep/1"}', FileFormatError, "eckart-sweep/1"),
        ('{"format": "eckart-dynamics/1"}', FileFormatError, "damaged"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, content, error, said):
    file = tmp_path / "dynamics.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(error, match=said):
        read_dynamics(file)


def test_a_record_with_a_missing_entry_is_damaged(tmp_path):
    content = recorded().to_json()
    content["layers"][1]["norm"].pop()
    (tmp_path / "dynamics.json").write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match="first does not have one entry for each of 4 steps"):
        read_dynamics(tmp_path)


def test_an_empty_run_has_a_record_too(tmp_path):
    Dynamics().save(tmp_path / "dynamics.json")
    assert read_dynamics(tmp_path) == Dynamics()
