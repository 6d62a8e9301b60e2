"""Every command that writes, on tiny inputs that eckart itself wrote, so that `--force` could replace each of them."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from eckart.checkpoint.manifest import write_manifest
from eckart.operations import analyze, convert, extract, merge

WORDS = ["the", "a", "rank", "of", "weight", "adapter", "low", "high", "noise", "signal", "learns", "is"]
TRAINING = "--steps 3 --save-every 1 --batch-size 1 --max-length 16 --rank 2 --target q_proj"
CELLS = "--ranks 1,2 --targets q_proj --steps 2 --batch-size 1 --max-length 16"


@dataclass(frozen=True)
class Command:
    """A command without its output, the inputs that it reads, and the ending of its output if that is a file."""

    line: str
    inputs: tuple[str, ...]
    suffix: str = ""

    def arguments(self, output: str | Path, *options: str) -> list[str]:
        name, *others = self.line.split()
        return [name, *others, "-o", str(output), *options]


COMMANDS = {
    "analyze": Command("analyze tuned --base base", ("tuned", "base")),
    "analyze adapter": Command("analyze adapter", ("adapter",)),
    "extract": Command("extract base tuned --rank 2", ("base", "tuned")),
    "resize": Command("resize adapter --rank 1", ("adapter",)),
    "resize file": Command("resize kohya.safetensors --rank 1", ("kohya.safetensors",), ".safetensors"),
    "combine": Command("combine adapter other --weights 1,0", ("adapter", "other")),
    "merge": Command("merge base adapter other --weights 1,0", ("base", "adapter", "other")),
    "unmerge": Command("unmerge merged adapter --base base", ("merged", "adapter", "base")),
    "convert": Command("convert adapter --to peft --base base", ("adapter", "base")),
    "convert file": Command("convert adapter --to kohya --base base", ("adapter", "base"), ".safetensors"),
    "convert lora": Command("convert adapter --to lora --base base", ("adapter", "base")),
    "convert for": Command("convert adapter --for sglang --base base", ("adapter", "base")),
    "resize for": Command("resize adapter --rank 1 --for sglang", ("adapter",)),
    "compare": Command("compare adapter other --base base", ("adapter", "other", "base")),
    "compare merge": Command("compare merged adapter --base base", ("merged", "adapter", "base")),
    "quantize": Command("quantize base", ("base",)),
    "train": Command(f"train base text.txt {TRAINING}", ("base", "text.txt")),
    "sweep": Command(f"sweep base text.txt {CELLS}", ("base", "text.txt")),
    "report": Command("report analysis", ("analysis",), ".html"),
    "plan": Command("plan base --method lora --max-length 16", ("base",), ".png"),
}


def write_inputs(model: Path, folder: Path) -> None:
    """Write what the commands read, from a model with its tokenizer."""
    base, tuned = shutil.copytree(model, folder / "base"), shutil.copytree(model, folder / "tuned")
    torch.manual_seed(1)
    weights = load_file(base / "model.safetensors")
    changed = {name: weight + 0.1 * torch.randn_like(weight) for name, weight in weights.items()}
    save_file(changed, tuned / "model.safetensors", metadata={"format": "pt"})
    write_manifest(base)
    write_manifest(tuned)
    extract(base, tuned, rank=2, output=folder / "adapter")
    extract(base, tuned, rank=1, output=folder / "other")
    merge(base, folder / "adapter", folder / "merged")
    analyze(tuned, base, output=folder / "analysis")
    convert(folder / "adapter", "kohya", base=base, output=folder / "kohya.safetensors")
    (folder / "text.txt").write_text(" ".join(WORDS[(i * i) % 11] for i in range(300)))


def digests(folder: Path) -> dict[str, str]:
    """The content of every file in a folder, and where every link leads."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
