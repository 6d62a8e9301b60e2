"""`eckart check` on an adapter of 700 MB, of which it reads the headers alone."""

import json
import shutil
import statistics
import struct
from math import prod

from bench.options import Options, script
from bench.results import Limit
from bench.timing import alternate, median_seconds, run_process

LAYERS, RANK = 32, 64
MODULES = {  # of Llama-3-8B: (out, in)
    **{f"self_attn.{name}_proj": (4096, 4096) for name in "qo"},
    **{f"self_attn.{name}_proj": (1024, 4096) for name in "kv"},
    **{f"mlp.{name}_proj": (14336, 4096) for name in ("gate", "up")},
    "mlp.down_proj": (4096, 14336),
}
SECONDS, PEAK_MB = 1.0, 100.0
REPEATS = 10


def run(options: Options) -> list[Limit]:
    """The whole process; the values are a hole in the file, which nothing reads."""
    folder = options.work / "check"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        header, size = {}, 0
        for layer in range(LAYERS):
            for module, (outputs, inputs) in MODULES.items():
                for part, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK))):
                    end = size + 4 * prod(shape)
                    name = f"base_model.model.model.layers.{layer}.{module}.{part}.weight"
                    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [size, end]}
                    size = end
        text = json.dumps(header).encode()
        with (folder / "adapter_model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + size)
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        command = (script("eckart"), "check", folder)
        run_process(*command)
        runs = alternate({"check": lambda: run_process(*command)}, repeats=REPEATS)["check"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wall, cpu = median_seconds(runs), statistics.median(one.cpu_seconds for one in runs)
    peak = max(one.peak_rss_bytes or 0 for one in runs) / 1e6
    fastest = min(one.seconds for one in runs)
    note = f"median of {REPEATS}, {len(header)} tensors; {wall:.2f} s of wall time, the fastest {fastest:.2f} s"
    return [
        Limit("CPU time of eckart check, an adapter of 671 MB, whole process", cpu, SECONDS, "s", note),
        Limit("its peak memory", peak, PEAK_MB, "MB"),
    ]
