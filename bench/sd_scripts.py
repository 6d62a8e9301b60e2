"""Resizing and extracting next to kohya's sd-scripts, on the same files.

With `--sd-scripts CHECKOUT` its scripts run; without it, eckart is compared with the errors and times that such a run
recorded in sd_scripts.json, on inputs that the seeds below make again.
"""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.images import lora_tensors, unet_shapes, write_file
from bench.options import Options, script
from bench.results import Comparison, Side
from bench.timing import Run, run_process

RECORD = Path(__file__).with_name("sd_scripts.json")
PEER = Path(__file__).with_name("peer_sd_scripts.py")
LAYERS, WIDEST, NEW_RANK = 16, 640, 16
UNET = {
    "sample_size": 32, "cross_attention_dim": 64, "attention_head_dim": 8, "block_out_channels": [32, 32, 64, 64]
}  # fmt: skip
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
SEED, DECAY = 0, 0.7  # the singular values of an update fall as k^-DECAY
OURS, THEIRS = "sd-scripts-ours.safetensors", "sd-scripts-theirs.safetensors"
LEAST = "an error at most as large"
MEASURE = "‖ΔW − result‖ / ‖ΔW‖ over all layers, of the files as written, in float64"


def run(options: Options) -> list[Comparison]:
    """Resize a part of an SDXL LoRA, and extract the difference of two small UNets."""
    shapes = {n: shape for n, shape in unet_shapes().items() if max(shape[0], math.prod(shape[1:])) <= WIDEST}
    lora = options.work / "sd-scripts-lora.safetensors"
    write_file(lora, lora_tensors(dict(list(shapes.items())[:LAYERS])))
    base, tuned = pair(options.work / "sd-scripts-base", options.work / "sd-scripts-tuned")
    recorded: dict[str, dict] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    rows = [resize(options, lora, recorded), *extract(options, base, tuned, recorded)]
    for path in (base, tuned):
        shutil.rmtree(path)
    for path in (lora, options.work / OURS, options.work / THEIRS):
        path.unlink(missing_ok=True)
    return rows


def resize(options: Options, lora: Path, recorded: dict[str, dict]) -> Comparison:
    """`resize_lora.py`, which forms each update and decomposes it completely."""
    ours = options.work / OURS
    truth = dict(updates(lora))
    own = ("resize", lora, "-o", ours, "--rank", str(NEW_RANK), "--force", "--no-resume")
    side = measured([run_process(script("eckart"), *own) for _ in range(options.repeats)], ours, truth)
    command = ("resize_lora.py", "--model", lora, "--new_rank", str(NEW_RANK))
    peer = theirs_of("resize", options, recorded, command=command, truth=truth)
    met = side.error <= peer.error
    task = f"resize {len(truth)} layers of an SDXL LoRA from rank 32 to {NEW_RANK}"
    return Comparison(task, "sd-scripts resize_lora.py", side, peer, LEAST, met, MEASURE, about(recorded))


def extract(options: Options, base: Path, tuned: Path, recorded: dict[str, dict]) -> list[Comparison]:
    """`extract_lora_from_models.py` as it is by default, clamped at the 99 % quantile, and without the clamp."""
    ours = options.work / OURS
    flags = ("--rank", str(NEW_RANK), "--to", "kohya", "--target", ".*", "--dtype", "float16", "--force", "--no-resume")
    runs = [run_process(script("eckart"), "extract", base, tuned, "-o", ours, *flags) for _ in range(options.repeats)]
    rows = []
    for clamp, quantile in (("clamped at the 99 % quantile, its default", "0.99"), ("not clamped", "1")):
        command = ("extract_lora_from_models.py", "--model_org", base, "--model_tuned", tuned, "--no_metadata")
        command += ("--dim", str(NEW_RANK), "--conv_dim", str(NEW_RANK), "--clamp_quantile", quantile)
        truth = differences(base, tuned)
        peer = theirs_of(f"extract {quantile}", options, recorded, command=command, truth=truth)
        names = recorded[f"extract {quantile}"]["layers"]
        side = measured(runs, ours, {name: truth[name] for name in names})
        task = f"extract rank {NEW_RANK} from two UNets, {len(names)} layers"
        peer_name = f"sd-scripts extract_lora_from_models.py, {clamp}"
        rows.append(Comparison(task, peer_name, side, peer, LEAST, side.error <= peer.error, MEASURE, about(recorded)))
    return rows


def theirs_of(
    name: str, options: Options, recorded: dict[str, dict], *, command: tuple[str | Path, ...], truth: dict[str, Tensor]
) -> Side:
    """The result of a script: of a run now, which is recorded, or the recorded one."""
    if options.sd_scripts is None:
        if name not in recorded:
            msg = "sd_scripts.json has no results of sd-scripts: give a checkout of it as --sd-scripts"
            raise FileNotFoundError(msg)
        return Side(**recorded[name]["side"])
    written = options.work / THEIRS
    one = run_process(
        sys.executable, PEER, options.sd_scripts, *command, "--save_to", written, "--save_precision", "fp16"
    )
    own = {layer: truth[layer] for layer, _ in updates(written)}
    side = measured([one], written, own)
    recorded["commit"] = commit(options.sd_scripts)
    recorded[name] = {"side": asdict(side), "layers": list(own)}
    RECORD.write_text(json.dumps(recorded, indent=2) + "\n")
    return side


def measured(runs: list[Run], written: Path, truth: dict[str, Tensor]) -> Side:
    """Times of the runs, and the error of the file that they wrote."""
    return replace(Side.of(runs), error=error(written, truth))


def error(written: Path, truth: dict[str, Tensor]) -> float:
    """‖ΔW − result‖ / ‖ΔW‖ over all layers; one that the file lacks is wrong entirely."""
    found = dict(updates(written))
    wrong = sum(float((dense - found.get(name, torch.zeros(()))).square().sum()) for name, dense in truth.items())
    return math.sqrt(wrong / sum(float(dense.square().sum()) for dense in truth.values()))


def updates(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The dense update of each layer of a kohya file, in float64."""
    tensors = load_file(file)
    for name in (key.removesuffix(".lora_down.weight") for key in tensors if key.endswith(".lora_down.weight")):
        down, up = (tensors[f"{name}.lora_{part}.weight"].double().flatten(1) for part in ("down", "up"))
        yield name, float(tensors[f"{name}.alpha"]) / len(down) * (up @ down)


def pair(base: Path, tuned: Path) -> tuple[Path, Path]:
    """A random UNet and its fine-tune, as folders of a pipeline; the singular values of each update decay."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(SEED)
    model = UNet2DConditionModel(**UNET)
    for folder in (base, tuned):
        shutil.rmtree(folder, ignore_errors=True)
        if folder == tuned:
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.data += change(parameter.data)
        model.save_pretrained(folder / "unet")
        (folder / "unet.json").write_text(json.dumps(UNET))
        (folder / "text.json").write_text(json.dumps(TEXT))
    return base, tuned


def change(weight: Tensor) -> Tensor:
    """A random update with decaying singular values, of a tenth of the weight's norm."""
    flat = weight.flatten(1)
    U, S, Vh = torch.linalg.svd(torch.randn(flat.shape), full_matrices=False)
    update = U * torch.arange(1, len(S) + 1) ** -DECAY @ Vh
    return (update * (0.1 * flat.norm() / update.norm())).reshape(weight.shape)


def differences(base: Path, tuned: Path) -> dict[str, Tensor]:
    """The difference of each matrix in float64, by kohya's name."""
    before, after = (load_file(folder / "unet/diffusion_pytorch_model.safetensors") for folder in (base, tuned))
    return {
        "lora_unet_" + name.removesuffix(".weight").replace(".", "_"): (after[name].double() - old.double()).flatten(1)
        for name, old in before.items()
        if old.ndim > 1
    }


def commit(checkout: Path) -> str:
    """The commit of a checkout, or its folder's name, which may be one."""
    result = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or checkout.name


def about(recorded: dict[str, dict]) -> str:
    return f"sd-scripts {str(recorded['commit'])[:7]}, run once; errors of the layers that it writes"
