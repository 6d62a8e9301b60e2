"""Refusals that paths, options or headers decide are made before torch is imported, which takes seconds."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from eckart.cli.main import COMMANDS

Q = "model.layers.0.self_attn.q_proj"
# All commands run in one process, in which torch cannot be imported; it reports which of them tried to.
CHILD = """
import contextlib, io, json, sys
class NoTorch:
    def find_spec(name, *_):
        if name == "torch":
            attempts.append(name)
            raise ImportError("torch is not needed for a refusal")
sys.meta_path.insert(0, NoTorch)
from eckart.__main__ import run
for command in json.load(sys.stdin):
    sys.argv, errors, status, attempts = ["eckart", *command.split()], io.StringIO(), 0, []
    with contextlib.redirect_stderr(errors):
        try:
            run()
        except SystemExit as exit:
            status = exit.code
    print(json.dumps([status, errors.getvalue(), len(attempts)]))
"""
MISSING, EXISTS, NOTHING = "no such file or folder", "already exists; use --force", "'nothing' matches nothing"
A_MODEL, AN_ADAPTER, NO_FIT = "is a model, not an adapter", "is an adapter, not", "the adapter does not fit"
REFUSALS = [
    ("analyze nowhere", MISSING),
    ("analyze base --base nowhere", MISSING),
    ("analyze base -o exists", EXISTS),
    ("analyze base --device warp", "Invalid value for '--device'"),
    ("analyze base --workers 0", "Invalid value for '--workers'"),
    ("analyze base --target nothing", NOTHING),
    ("analyze base --target atention", "nearest: attention"),
    ("analyze adapter --target nothing", NOTHING),
    ("analyze base --base smaller", "shape (6, 6) in the base, (8, 8) in the tuned checkpoint"),
    ("analyze base --base adapter", AN_ADAPTER),
    ("analyze adapter --base base", "already an update"),
    ("extract base nowhere -o new", MISSING),
    ("extract base tuned -o exists", EXISTS),
    ("extract base tuned -o new --rank 0", "--rank must be at least 1, got 0"),
    ("extract base tuned -o new --budget lots", "--budget must be bytes"),
    ("extract base tuned -o new --dtype int3", "Invalid value for '--dtype'"),
    ("extract base tuned -o new --target nothing", NOTHING),
    ("extract base smaller -o new", "shape (8, 8) in the base, (6, 6) in the tuned checkpoint"),
    ("extract base adapter -o new", AN_ADAPTER),
    ("resize nowhere -o new --rank 1", MISSING),
    ("resize adapter -o exists --rank 1", EXISTS),
    ("resize adapter -o new --rank 0", "--rank must be at least 1, got 0"),
    ("resize adapter -o new --rank 1 --target nothing", NOTHING),
    ("resize base -o new --rank 1", A_MODEL),
    ("combine adapter nowhere -o new", MISSING),
    ("combine adapter adapter -o exists", EXISTS),
    ("combine adapter adapter -o new --weights x", "--weights must be one number per adapter"),
    ("combine adapter adapter -o new --weights 1", "1 weights for 2 adapters"),
    ("combine adapter adapter-6 -o new", "the shapes differ"),
    ("combine adapter base -o new", A_MODEL),
    ("combine adapter adapter -o new --ray nowhere", "--ray must be auto or the HOST:PORT"),
    ("merge base adapter -o new --ray localhost:1", "the Ray cluster at localhost:1 does not answer"),
    ("merge base adapter -o new --ray localhost:1 --shard 1/2", "leave --shard out"),
    ("merge base adapter -o new --collect --shard 1/2", "leave --shard, --ray and --no-resume out"),
    ("analyze base --collect", "--collect needs the output"),
    ("merge nowhere adapter -o new", MISSING),
    ("merge base nowhere -o new", MISSING),
    ("merge base adapter -o exists", EXISTS),
    ("merge base adapter -o new --weights x", "--weights must be one number per adapter"),
    ("merge smaller adapter -o new", NO_FIT),
    ("merge base base -o new", A_MODEL),
    ("merge adapter adapter -o new", AN_ADAPTER),
    ("merge base adapter -o new --calibrate text", "writes no codes"),
    ("merge base adapter -o exists --calibrate text", EXISTS),
    ("merge base adapter -o new --calibrate nowhere", MISSING),
    ("merge smaller adapter -o new --calibrate text", NO_FIT),
    ("merge base adapter -o new --calibrate text --dtype bfloat16", "use one of them"),
    ("unmerge nowhere adapter -o new", MISSING),
    ("unmerge base adapter -o exists", EXISTS),
    ("unmerge base adapter -o new --weights x", "--weights must be one number per adapter"),
    ("unmerge smaller adapter -o new", NO_FIT),
    ("unmerge base adapter -o new --base smaller", "was not merged from"),
    ("unmerge base base -o new", A_MODEL),
    ("convert nowhere -o new --to kohya", MISSING),
    ("convert adapter -o exists --to peft", EXISTS),
    ("convert adapter -o new --to nothing", "Invalid value for '--to'"),
    ("convert adapter -o new --to diffusers", "cannot be converted"),
    ("convert adapter -o new --to gguf --base base", "which is not known: give the model as --base"),
    ("convert adapter -o new --to lora", "every layer is plain LoRA already"),
    ("convert base -o new --to kohya", A_MODEL),
    ("compare adapter nowhere", MISSING),
    ("compare adapter adapter -o exists", EXISTS),
    ("compare adapter adapter --directions 0", "Invalid value for '--directions'"),
    ("compare adapter adapter --target nothing", NOTHING),
    ("compare base tuned --target nothing", NOTHING),
    ("compare adapter adapter-6", "adapters for different bases"),
    ("compare base smaller", "are not of one model"),
    ("compare adapter base --base smaller", NO_FIT),
    ("compare adapter base", "which cannot be compared"),
    ("check nowhere", MISSING),
    ("check base", A_MODEL),
    ("check adapter --base nowhere", MISSING),
    ("check adapter --for nothing", "Invalid value for '--for'"),
    ("quantize nowhere -o new", MISSING),
    ("quantize base -o exists", EXISTS),
    ("quantize base -o new --block-size 3", "--block-size must be one of"),
    ("quantize base -o new --target nothing", NOTHING),
    ("quantize adapter -o new", AN_ADAPTER),
    ("quantize base -o new --to fp9", "Invalid value for '--to'"),
    ("quantize base -o new --to mxfp4", "are not groups of 32"),
    ("quantize base -o exists --calibrate text", EXISTS),
    ("quantize base -o new --calibrate nowhere", MISSING),
    ("quantize base -o new --calibrate text --target nothing", NOTHING),
    ("quantize base -o new --correct 4", "--calibrate"),
    ("quantize base -o new --calibrate text --distill", "give its rank with --correct"),
    ("quantize base -o new --calibrate text --correct 4 --steps 2", "add --distill"),
    ("correct nowhere base -o new --calibrate text", MISSING),
    ("correct base adapter -o new --calibrate text", AN_ADAPTER),
    ("correct base base -o new --calibrate nowhere", MISSING),
    ("correct base base -o exists --calibrate text", EXISTS),
    ("correct base base -o new", "--calibrate"),
    ("correct base base -o new --calibrate text --steps 2", "add --distill"),
    ("plan nowhere", "no preset, file or folder of that name"),
    ("plan adapter", "is an adapter; give its base model"),
    ("plan base --rank 0", "of at least 1, got 0"),
    ("plan base --memory much", "--memory must be an amount"),
    ("plan base --gpus 0", "--gpus must be an integer of at least 1, got 0"),
    ("plan base --gpus 2 --memory 8x80GB", "--gpus is 2, but --memory is that of 8 GPUs"),
    ("plan base --data-size much", "got 'much'"),
    ("train base text -o exists", EXISTS),
    ("train base text -o new --rank 0", "of at least 1, got 0"),
    ("train base text -o new --steps 0", "of at least 1, got 0"),
    ("train base text -o new --target nothing", NOTHING),
    ("train base text -o new --target q_prj", "nearest: q_proj"),
    ("train nowhere text -o new", MISSING),
    ("train adapter text -o new", AN_ADAPTER),
    ("train base nowhere -o new", MISSING),
    ("train base text -o new --eval-data nowhere", MISSING),
    ("sweep base text -o new --targets q_proj+nothing", NOTHING),
    ("sweep nowhere text -o new", MISSING),
    ("sweep base nowhere -o new", MISSING),
    ("sweep base text -o new --ranks x", "invalid sweep grid"),
    ("run nowhere.yaml", "cannot be read"),
    ("run recipe.yaml", "--rank must be at least 1, got 0"),
    ("report nowhere -o page.html", "nowhere: no such folder"),
    ("report base -o page.html", "contains none of analysis.json"),
]
REFUSES_LATER = {"demo": "it takes no input, and its model and text are in packages"}


def test_every_command_has_a_row_or_a_reason() -> None:
    assert {line.split()[0] for line, _ in REFUSALS} | REFUSES_LATER.keys() == set(COMMANDS)


def save_model(folder, size) -> None:
    folder.mkdir()
    save_file({f"{Q}.weight": torch.randn(size, size)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')


def save_adapter(folder, size) -> None:
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    factors = {"lora_A": torch.randn(2, size), "lora_B": torch.randn(size, 2)}
    tensors = {f"base_model.model.{Q}.{name}.weight": factor for name, factor in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The exit status, the message, and the number of attempts to import torch, of each command."""
    folder = tmp_path_factory.mktemp("refusals")
    for name, size in (("base", 8), ("tuned", 8), ("smaller", 6)):
        save_model(folder / name, size)
    for name, size in (("adapter", 8), ("adapter-6", 6)):
        save_adapter(folder / name, size)
    (folder / "exists").mkdir()
    (folder / "exists" / "file").touch()
    (folder / "text").write_text("text")
    (folder / "recipe.yaml").write_text("- resize: {adapter: adapter, rank: 0, output: new}")
    commands = [command for command, _ in REFUSALS]
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=folder,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return dict(zip(commands, map(json.loads, child.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("command", "message"), REFUSALS, ids=[command for command, _ in REFUSALS])
def test_a_refusal_from_options_paths_or_headers_imports_no_torch(command, message, outcomes) -> None:
    status, errors, imports = outcomes[command]
    assert message in " ".join(errors.split())
    assert status == (2 if "Usage:" in errors else 1)
    assert imports == 0
