"""The settings that may be advised, from the most faithful to the leanest."""

from collections.abc import Iterator
from dataclasses import replace

from eckart.nn.config import LoRAConfig
from eckart.planning.request import Request
from eckart.planning.setting import Method, PlanSetting

MIN_LENGTH = 128
SMALL_RANK = 8


def candidates(request: Request) -> Iterator[PlanSetting]:
    """Settings from the most faithful to the leanest."""
    methods: tuple[Method, ...] = (request.setting.method,) if "method" in request.named else ("lora", "qlora")
    setting = request.using(methods[0])
    for method in methods:
        for checkpointing in sorted({request.setting.gradient_checkpointing, True}):
            setting = replace(request.using(method), gradient_checkpointing=checkpointing)
            yield setting
    if setting.method == "full":
        setting = replace(setting, optimizer="adamw8bit")
        yield setting
    else:
        for lora in _smaller_adapters(request):
            setting = replace(setting, lora=lora)
            yield setting
    while setting.length // 2 >= MIN_LENGTH:
        setting = replace(setting, length=setting.length // 2)
        yield setting


def leanest(request: Request) -> PlanSetting:
    """The setting with the lowest peak of those that `advise` tries at the requested length."""
    return [setting for setting in candidates(request) if setting.length == request.setting.length][-1]


def _smaller_adapters(request: Request) -> Iterator[LoRAConfig]:
    """Adapters of lower rank or on fewer modules, as far as the user left these open."""
    lora = request.adapter
    targets = [lora.target] if "target" in request.named else [lora.target, "attention", "attention-min"]
    ranks = [lora.rank] if "rank" in request.named or lora.rank <= SMALL_RANK else [lora.rank, SMALL_RANK]
    for target in targets:
        for rank in ranks:
            smaller = replace(lora, target=target, rank=rank, alpha=2.0 * rank)
            if smaller != lora:
                yield smaller
