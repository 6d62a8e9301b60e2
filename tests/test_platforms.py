"""Any platform, any install: commands run without what only Linux has, and without every optional library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

COMMANDS = """
from eckart.cli.main import app

for command in commands:
    try:
        app(command)
    except SystemExit as ended:
        assert not ended.code, (command, ended.code)
"""

# As on Windows and macOS. Other libraries have their own code for each platform, so only ours is kept from importing.
WITHOUT_LINUX = """
import builtins, ctypes, os

for name in ("preadv", "pwrite", "posix_fallocate", "sched_getaffinity"):
    delattr(os, name)
plain_import, plain_init = builtins.__import__, ctypes.CDLL.__init__

def portable_import(name, globals=None, locals=None, fromlist=(), level=0):
    if name in ("fcntl", "resource") and (globals or {}).get("__name__", "").startswith("eckart"):
        raise ImportError(f"no module named {name}")
    return plain_import(name, globals, locals, fromlist, level)

def init(self, name, *rest, **options):
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    plain_init(self, name, *rest, **options)

builtins.__import__, ctypes.CDLL.__init__ = portable_import, init
"""

EXTRAS = (
    *("accelerate", "bitsandbytes", "datasets", "diffusers", "gguf", "IPython", "ipykernel", "jinja2", "jupytext"),
    *("matplotlib", "mkdocs", "nbconvert", "pandas", "peft", "playwright", "tensorboard", "tokenizers", "transformers"),
    "trl",
)
WITHOUT_EXTRAS = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {EXTRAS} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """A base model, and a fine-tune of it whose update has rank 2 or less."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text((tiny_folder("llama") / "config.json").read_text())
    weights = load_file(tiny_folder("llama") / "model.safetensors")
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            factors = (torch.randn(size, 2, generator=generator) for size in weight.shape)
            left, right = factors
            weights[name] = weight + 0.01 * left @ right.T
    save_file(weights, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    return tmp_path


def run_commands(preamble: str, folder: Path, commands: list[list[str]]) -> subprocess.CompletedProcess:
    program = f"{preamble}\ncommands = {commands}\n{COMMANDS}"
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)


WORK = [
    ["extract", "base", "tuned", "-o", "adapter", "--rank", "2"],
    ["resize", "adapter", "-o", "small", "--rank", "1"],
    ["merge", "base", "adapter", "-o", "merged"],
    ["convert", "adapter", "-o", "adapter-kohya.safetensors", "--to", "kohya"],
]
SHOWN = [["analyze", "tuned", "--base", "base", "-o", "analysis"], ["compare", "adapter", "small", "-o", "comparison"]]


@pytest.mark.parametrize("preamble", [WITHOUT_LINUX, WITHOUT_EXTRAS], ids=["no Linux", "no extras"])
def test_commands_run_on_any_platform_and_with_the_core_install(folder, preamble):
    ended = run_commands(preamble, folder, [SHOWN[0][:-2], *WORK, SHOWN[1][:-2]])
    assert ended.returncode == 0, ended.stderr
    tuned, merged = (load_file(folder / name / "model.safetensors") for name in ("tuned", "merged"))
    assert tuned.keys() == merged.keys()
    assert all(torch.allclose(tuned[name], merged[name], atol=1e-5) for name in tuned)
    assert json.loads((folder / "small" / "adapter_config.json").read_text())["r"] == 1


def test_without_extras_the_numbers_are_written_and_the_missing_pictures_are_named(folder):
    ended = run_commands(WITHOUT_EXTRAS, folder, [*WORK[:2], *SHOWN])
    assert ended.returncode == 0, ended.stderr
    assert json.loads((folder / "analysis" / "analysis.json").read_text())["kind"]
    assert (folder / "analysis" / "analysis.csv").exists()
    assert json.loads((folder / "comparison" / "comparison.json").read_text())
    assert ended.stderr.count("needs the 'report' extra: pip install") == 3  # of extract, analyze and compare
