"""Every command that writes, on tiny inputs that eckart itself wrote, so that `--force` could replace each of them."""

import functools
import hashlib
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from eckart.checkpoint.manifest import TEXTS, write_manifest
from eckart.operations import analyze, convert, extract, merge, quantize

WORDS = ["the", "a", "rank", "of", "weight", "adapter", "low", "high", "noise", "signal", "learns", "is"]
TRAINING = "--steps 3 --save-every 1 --batch-size 1 --max-length 16 --rank 2 --target q_proj"
CELLS = "--ranks 1,2 --targets q_proj --steps 2 --batch-size 1 --max-length 16"
ON_TEXT = "--rank 2 --distill text.txt --steps 1"
SOURCES = {
    *("base", "tuned", "adapter", "other", "merged", "nf4", "analysis", "kohya.safetensors", "unet.safetensors"),
    *("denoiser.safetensors", "tuned.safetensors"),
    *("text.txt", "heldout.txt", "ranks.json"),
}


@dataclass(frozen=True)
class Command:
    """A command without its output, and the ending of its output if that is a file.

    Attributes:
        line: what is typed.
        suffix: the ending.
        reads: inputs that are not on the line, but named by an adapter or by nobody.
        continues: whether the output is a folder in which finished parts appear, and in which a repetition continues.
    """

    line: str
    suffix: str = ""
    reads: tuple[str, ...] = ()
    continues: bool = False

    @property
    def name(self) -> str:
        return self.line.split()[0]

    @property
    def inputs(self) -> tuple[str, ...]:
        return *(word for word in self.line.split() if word in SOURCES), *self.reads

    def arguments(self, output: str | Path, *options: str) -> list[str]:
        return [*self.line.split(), "-o", str(output), *options]


COMMANDS = {
    "analyze": Command("analyze tuned --base base"),
    "analyze adapter": Command("analyze adapter"),
    "extract": Command("extract base tuned --rank 2"),
    "extract file": Command("extract denoiser.safetensors tuned.safetensors --rank 1 --to comfyui", ".safetensors"),
    "extract budget": Command("extract base tuned --budget 60KB"),
    "extract distill": Command(f"extract base tuned {ON_TEXT} --eval heldout.txt"),
    "extract gain": Command("extract tuned base --gain 0.5 --max-rank 2 --eval heldout.txt"),
    "resize": Command("resize adapter --rank 1"),
    "resize gain": Command("resize adapter --gain 0.5 --ladder 1,2 --eval heldout.txt", reads=("base",)),
    "resize file": Command("resize kohya.safetensors --rank 1", ".safetensors"),
    "resize distill": Command(f"resize adapter {ON_TEXT}", reads=("base",)),
    "resize for": Command("resize adapter --rank 1 --for sglang --base base"),
    "combine": Command("combine adapter other --weights 1,0 --base base"),
    "combine eval": Command("combine adapter other --eval text.txt --eval heldout.txt", reads=("base",)),
    "merge": Command("merge base adapter other --weights 1,0"),
    "unmerge": Command("unmerge merged adapter --base base"),
    "unmerge alone": Command("unmerge merged adapter", reads=("base",)),
    "convert": Command("convert adapter --to peft --base base"),
    "convert file": Command("convert adapter --to kohya --base base", ".safetensors"),
    "convert comfyui": Command("convert unet.safetensors --to comfyui", ".safetensors"),
    "convert diffusers": Command("convert unet.safetensors --to diffusers", ".safetensors"),
    "convert mlx": Command("convert adapter --to mlx --base base"),
    "convert gguf": Command("convert adapter --to gguf --base base", ".gguf"),
    "convert lora": Command("convert adapter --to lora --base base"),
    "convert for": Command("convert adapter --for sglang --base base"),
    "compare": Command("compare adapter other --base base"),
    "compare merge": Command("compare merged adapter --base base"),
    "quantize": Command("quantize base"),
    "quantize calibrated": Command("quantize base --calibrate text.txt --correct 1"),
    "quantize distill": Command("quantize base --calibrate text.txt --correct 1 --distill --steps 1"),
    "merge calibrated": Command("merge nf4 adapter --calibrate text.txt --original base"),
    "correct": Command("correct nf4 base --rank 1 --calibrate text.txt --with adapter"),
    "train": Command(f"train base text.txt --eval-data heldout.txt --rank-pattern ranks.json {TRAINING}"),
    "sweep": Command(f"sweep base text.txt --eval-data heldout.txt {CELLS}", continues=True),
    "report": Command("report analysis", ".html"),
    "plan": Command("plan base --method lora --max-length 16 --analysis analysis", ".png"),
    "demo": Command("demo --fine-tune", reads=("base",), continues=True),
}
WRITES_NOTHING = {"check": "it prints what it finds in headers", "run": "its steps write, each as its own command"}
KEPT = {"--moments"}  # a file that is read where it exists, of a model that must not have been copied


def use_small_demo() -> None:
    """Let `eckart demo` take the folder `base` for its model, a few sentences for its text, and a moment to train."""
    import pydoc_data.topics

    from eckart import demo
    from eckart.nn import LoRAConfig
    from eckart.training import FinetuneSettings, TrainSettings

    settings = demo.DemoSettings(
        LoRAConfig(rank=2, alpha=4),
        TrainSettings(steps=6, batch_size=1, learning_rate=2e-2, save_every=3),
        sequence_tokens=16,
        held_out_chars=300,
        keep=0.1,
    )
    pydoc_data.topics.topics = {f"topic {each}": sentence(each, 200) for each in range(20)}
    demo.quick_settings = lambda: settings
    demo.quick_fine_tune = lambda: FinetuneSettings(steps=1, batch_size=1)
    demo.run_demo = functools.partial(demo.run_demo, model="base")


def sentence(seed: int, words: int) -> str:
    """Words of which a small model learns which are common."""
    return " ".join(random.Random(seed).choices(WORDS, range(len(WORDS)), k=words))


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
    for adapter in ("adapter", "other"):
        config = folder / adapter / "adapter_config.json"
        config.write_text(config.read_text().replace(str(base), "base"))  # that of every copy of this folder
    merge(base, folder / "adapter", folder / "merged")
    quantize(base, folder / "nf4")
    analyze(tuned, base, output=folder / "analysis")
    convert(folder / "adapter", "kohya", base=base, output=folder / "kohya.safetensors")
    (folder / "text.txt").write_text(sentence(0, 1800))
    (folder / "heldout.txt").write_text(sentence(1, 60))
    (folder / "ranks.json").write_text('{"model.layers.0.self_attn.q_proj": 1}')
    module = "lora_unet_down_blocks_0_attentions_0_proj_in"
    factors = {"lora_down": torch.ones(1, 8), "lora_up": torch.ones(8, 1)}
    unet = {f"{module}.{name}.weight": factor for name, factor in factors.items()} | {
        f"{module}.alpha": torch.tensor(1.0)
    }
    save_file(unet, folder / "unet.safetensors", metadata=TEXTS)
    denoiser = {f"model.diffusion_model.blocks.{i}.self_attn.q.weight": torch.randn(8, 8) for i in range(3)}
    save_file(denoiser, folder / "denoiser.safetensors", metadata=TEXTS)
    tuned_denoiser = {name: weight + torch.randn_like(weight) for name, weight in denoiser.items()}
    save_file(tuned_denoiser, folder / "tuned.safetensors", metadata=TEXTS)


def digests(folder: Path) -> dict[str, str]:
    """The content of every file in a folder, and where every link leads."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
