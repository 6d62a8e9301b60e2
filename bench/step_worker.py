"""One side of the training step, in a separate process: MODEL SIDE DTYPE METHOD DROPOUT STEPS BATCH."""

import gc
import json
import statistics
import sys
import threading
import time

import psutil
import torch
from torch import Tensor, nn

from eckart.demo.corpus import language_reference
from eckart.engine.machine import c_library_function
from eckart.evaluation import load_model, load_tokenizer
from eckart.nn import LoRAConfig, adapted_modules, inject
from eckart.nn.head_loss import head_loss
from eckart.training import pack_texts

RANK, ALPHA, LENGTH, RATE, WARMUP = 16, 32, 256, 2e-4, 2
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
THREADS = 2


def main() -> None:
    source, side, dtype, method, dropout, steps, size = sys.argv[1:]
    torch.set_num_threads(THREADS)
    model = load_model(source).to(getattr(torch, dtype))
    config = LoRAConfig(rank=RANK, alpha=ALPHA, dropout=float(dropout), method=method)
    model = _with_peft(model, config) if side == "peft" else _with_eckart(model, config)
    loss_of = _head if side == "step" else _logits
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    sequences = pack_texts(language_reference().training.values(), load_tokenizer(source), length=LENGTH)
    torch.manual_seed(0)
    seconds, cpu_seconds, losses = [], [], []
    with _Peak() as peak:
        for step in range(int(steps)):
            batch = sequences[step * int(size) % (len(sequences) - int(size)) :][: int(size)]
            start, cpu_start = time.perf_counter(), time.process_time()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
            losses.append(loss.item())
    medians = (statistics.median(values[WARMUP:]) for values in (seconds, cpu_seconds))
    record = dict(zip(("seconds", "cpu_seconds"), medians, strict=True)) | {"peak_bytes": peak.above, "losses": losses}
    sys.stdout.write(f"\n{json.dumps(record)}\n")


def _logits(model: nn.Module, batch: Tensor) -> Tensor:
    return model(input_ids=batch, labels=batch, use_cache=False).loss


def _head(model: nn.Module, batch: Tensor) -> Tensor:
    hidden = model.base_model(input_ids=batch, use_cache=False).last_hidden_state
    return head_loss(hidden, model.get_output_embeddings().weight, batch)


def _with_eckart(model: nn.Module, config: LoRAConfig) -> nn.Module:
    inject(model, config)
    for path, module in adapted_modules(model).items():
        _start(path, module.factors("default").lora_A)
    return model


def _with_peft(model: nn.Module, config: LoRAConfig) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    theirs = LoraConfig(
        r=config.rank,
        lora_alpha=int(config.alpha),
        lora_dropout=config.dropout,
        use_dora=config.method == "dora",
        target_modules=PROJECTIONS,
    )
    model = get_peft_model(model, theirs)
    for path, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            _start(path, module.lora_A["default"].weight)
    return model


@torch.no_grad()
def _start(path: str, lora_A: Tensor) -> None:
    """The same initial A on both sides."""
    generator = torch.Generator().manual_seed(sum(path.encode()))
    lora_A.copy_(torch.rand(lora_A.shape, generator=generator).sub_(0.5).mul_(2 * lora_A.shape[1] ** -0.5))


class _Peak:
    """Resident memory in addition to that at the start, sampled every two milliseconds."""

    def __enter__(self) -> "_Peak":
        gc.collect()
        trim = c_library_function("malloc_trim")
        if trim:
            trim(0)
        self.start = self.highest = _resident()
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.thread.join()

    @property
    def above(self) -> int:
        return self.highest - self.start

    def _watch(self) -> None:
        while not self.is_over.wait(0.002):
            self.highest = max(self.highest, _resident())


def _resident() -> int:
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    main()
