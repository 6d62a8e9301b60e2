"""Trainings in processes of their own: killed, without PEFT, and two of them together."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import transformers

import eckart
from eckart.errors import OptionError
from eckart.formats import load_adapter
from eckart.nn import LoRAConfig
from eckart.training import DataOptions, TrainSettings, train
from eckart.training.sharded_base import differing, taking_over_fsdp

from .tiny import words, write_lines

RUN = Path(__file__).with_name("run.py")
SETTINGS = TrainSettings(steps=9, batch_size=4, learning_rate=2e-2, save_every=3, device="cpu")
OPTIONS = DataOptions(max_length=32)


def start(
    *command: object, model: Path, data: Path, output: Path, path: str, **given: object
) -> subprocess.CompletedProcess:
    given = {"settings": asdict(SETTINGS), "options": asdict(OPTIONS), "kill_at": None, **given}
    # -S: no site-packages but those of `path`.
    command = [sys.executable, *command, RUN, model, data, output, json.dumps(given)]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def without_peft(tmp_path: Path) -> str:
    """A search path with everything that is installed, but PEFT."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for package in Path(transformers.__file__).parents[1].iterdir():
        if not package.name.lower().startswith("peft"):
            (folder / package.name).symlink_to(package)
    return os.pathsep.join([str(folder), str(Path(eckart.__file__).parents[1])])


def test_a_killed_training_resumes_to_the_bits_of_an_unbroken_one_and_needs_no_peft(tiny, text, tmp_path, without_peft):
    config = {"rank": 4, "dropout": 0.2, "method": "dora"}
    output = tmp_path / "killed"
    ended = start("-S", model=tiny, data=text, output=output, path=without_peft, config=config, kill_at=8)
    assert ended.returncode == -9, ended.stderr
    assert sorted(path.name for path in tmp_path.glob("killed.partial/checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-6",
    ]
    (tmp_path / "killed.partial" / "checkpoint-7").mkdir()  # as one that was cut short
    options = {"config": LoRAConfig(**config), "settings": SETTINGS, "options": OPTIONS}
    train(tiny, text, **options, output=output, resume=True)
    whole = train(tiny, text, **options)
    resumed = load_adapter(output)
    assert len(resumed) == 14
    for name, layer in whole.adapter.items():
        assert all(torch.equal(resumed[name].tensors()[part], tensor) for part, tensor in layer.tensors().items())


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)


@pytest.fixture(scope="session")
def tied(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its embedding as its head."""
    folder = tmp_path_factory.mktemp("tied") / "model"
    shutil.copytree(tiny, folder)
    transformers.AutoModelForCausalLM.from_pretrained(tiny, tie_word_embeddings=True).save_pretrained(folder)
    return folder


@pytest.fixture
def asks_for_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that accelerate launch sets."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")


@pytest.mark.parametrize(("model", "quantize"), [("tiny", None), ("tied", None), ("tiny", "nf4")])
@pytest.mark.usefixtures("asks_for_fsdp")
def test_a_base_that_two_processes_share_gives_the_adapter_of_one(model, quantize, text, tmp_path, request):
    tiny = request.getfixturevalue(model)
    few = asdict(SETTINGS) | {"steps": 3, "save_every": None, "quantize": quantize}
    output = tmp_path / "two"
    path = os.pathsep.join(sys.path)
    ended = start(
        *TORCHRUN,
        model=tiny,
        data=text,
        output=output,
        path=path,
        config={"rank": 4},
        settings=few,
        first_loads=quantize is None,
    )
    assert ended.returncode == 0, ended.stderr
    settings = TrainSettings(**few | {"batch_size": 8})
    one = train(tiny, text, config=LoRAConfig(rank=4), settings=settings, options=OPTIONS)
    two = load_adapter(output)
    assert len(two) == len(one.adapter) == 14
    for name, layer in one.adapter.items():
        for part, tensor in layer.tensors().items():
            torch.testing.assert_close(two[name].tensors()[part], tensor, atol=1e-5, rtol=0)
    told = json.loads((output / "train.json").read_text())
    assert told["heldout_loss_after"] == pytest.approx(one.heldout_loss_after, rel=1e-5)
    assert any("sharded" in note for note in told["notes"])


def test_two_processes_give_the_adapter_of_one_with_twice_the_batch(tiny, tmp_path):
    """To 1e-5 in float32, 1/2000 of a step of Adam: gradients are summed in another order.

    The records have from one to seven words to learn, so that every token must count the same in whichever process.
    """
    records = [{"prompt": f"{words(seed % 5 + 1)} ", "completion": words(seed % 7 + 1, seed)} for seed in range(44)]
    data = write_lines(tmp_path / "d.jsonl", records)
    ended = start(
        *TORCHRUN, model=tiny, data=data, output=tmp_path / "two", path=os.pathsep.join(sys.path), config={"rank": 4}
    )
    assert ended.returncode == 0, ended.stderr
    one = train(
        tiny,
        data,
        config=LoRAConfig(rank=4),
        settings=TrainSettings(**asdict(SETTINGS) | {"batch_size": 8}),
        options=OPTIONS,
    )
    two = load_adapter(tmp_path / "two")
    for name, layer in one.adapter.items():
        for part, tensor in layer.tensors().items():
            torch.testing.assert_close(two[name].tensors()[part], tensor, atol=1e-5, rtol=0)
    told = json.loads((tmp_path / "two" / "train.json").read_text())
    assert told["losses"]["loss"] == pytest.approx(list(one.losses.values()), rel=1e-5)
    assert told["heldout_loss_after"] == pytest.approx(one.heldout_loss_after, rel=1e-5)
    assert told["heldout_tokens"] == one.heldout_tokens
    assert told["run"]["processes"] == 2


@pytest.mark.parametrize(
    ("processes", "gpus", "has_nccl", "device", "said"),
    [
        (2, 1, True, "auto", "NCCL needs a GPU for each, of which there are 1"),
        (4, 2, True, "cuda", "4 processes were started"),
        (2, 2, False, "auto", "which this torch lacks"),
        (2, 2, True, "auto", None),
        (2, 1, True, "cpu", None),
        (1, 1, False, "cuda", None),
        (2, 0, True, "auto", None),
    ],
)
def test_processes_that_cannot_be_connected_are_refused_in_the_settings(  # noqa: PLR0917
    processes, gpus, has_nccl, device, said, monkeypatch
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: has_nccl)
    with pytest.raises(OptionError, match=said) if said else nullcontext():
        TrainSettings(device=device)


def test_processes_with_different_options_are_told_apart():
    first = {"settings": {"learning_rate": 1e-3, "steps": 9}, "model": "base"}
    assert differing(first, first) == []
    other = {"settings": {"learning_rate": 2e-3, "steps": 9}, "model": "base"}
    assert differing(other, first) == ["settings.learning_rate: 0.002, process 0 has 0.001"]


@pytest.mark.parametrize(
    ("variables", "is_live", "said"),
    [
        ({}, True, "give its SOURCE"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, False, "fsdp_offload_params to false"),
    ],
)
def test_what_fsdp_cannot_do_here_is_refused(variables, is_live, said, monkeypatch):
    for name, value in {"ACCELERATE_USE_FSDP": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=said), taking_over_fsdp(is_live=is_live):
        pass
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
