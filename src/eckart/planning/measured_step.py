"""The process that `measure` starts: runs the training step described on stdin, and writes its memory to stdout."""

import gc
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.engine.machine import c_library_function
from eckart.nn import LoRAConfig
from eckart.planning.architecture import build_model, read_architecture
from eckart.planning.setting import PlanSetting
from eckart.planning.step import TrainingStep

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PretrainedConfig

_SHORT = 16  # tokens


def main() -> None:
    """Measure, and write the result."""
    task = json.load(sys.stdin)
    setting = read_setting(task["setting"])
    config = read_architecture(task["config"])
    mesh = _join(setting.gpus, task["meeting"])
    _short_step(config, setting, mesh)
    baseline = _resident("VmRSS")
    step = TrainingStep(build_model(config, setting), setting, mesh=mesh)
    step.run()  # after which the optimizer has its states
    _return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    start = time.perf_counter()
    step.run()
    seconds = time.perf_counter() - start
    measured = {"process_bytes": _resident("VmHWM"), "baseline_bytes": baseline, "seconds": seconds}
    sys.stdout.write(f"\n{json.dumps(measured)}\n")


def _join(processes: int, meeting: str) -> "DeviceMesh | None":
    """Meet the other processes that take part in the step, over a file."""
    if processes == 1:
        return None
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    return init_device_mesh("cpu", (processes,))


def read_setting(fields: dict[str, Any]) -> PlanSetting:
    """A setting from its fields."""
    lora = fields.pop("lora")
    return PlanSetting(**fields, lora=None if lora is None else LoRAConfig(**lora))


def _short_step(config: "PretrainedConfig", setting: PlanSetting, mesh: "DeviceMesh | None") -> None:
    """Let libraries do their one-time setup: threads, buffers, compiled kernels, code."""
    short = replace(setting, batch_size=1, length=min(_SHORT, setting.length))
    TrainingStep(build_model(config, short), short, mesh=mesh).run()
    _return_freed_memory()


def _return_freed_memory() -> None:
    """Return freed memory to the system, if the C library can."""
    gc.collect()
    trim = c_library_function("malloc_trim")
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    """`VmRSS`, the resident bytes of this process, or `VmHWM`, their peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
