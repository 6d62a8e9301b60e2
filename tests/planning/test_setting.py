"""A setting that cannot be trained is refused with all its faults."""

import pytest

from eckart.errors import OptionError
from eckart.nn import LoRAConfig
from eckart.planning.setting import PlanSetting


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1, got 0"),
        ({"length": 1}, "`max_length` must be an integer of at least 2, got 1"),
        ({"batch_size": 2.0}, "`batch_size` must be an integer"),
        ({"method": "lra"}, "`method` must be one of full, lora, dora, qlora, got 'lra'"),
        ({"dtype": "int8"}, "`dtype` must be one of float32, float16, bfloat16"),
        ({"optimizer": "sgd"}, "`optimizer` must be one of adamw, adamw8bit"),
        ({"attention": "flash"}, "`attention` must be one of sdpa, eager"),
        ({"lora": LoRAConfig(method="dora")}, "`method` must be dora"),
        ({"lora": LoRAConfig(init="loftq")}, "`method` must be qlora"),
    ],
)
def test_what_cannot_be_trained_is_refused(options, said):
    with pytest.raises(OptionError, match=said):
        PlanSetting(**options)


def test_all_faults_are_reported_at_once():
    with pytest.raises(OptionError, match=r"(?s)batch_size.*length.*method"):
        PlanSetting(batch_size=-1, length=0, method="none")


def test_the_adapter_is_what_inject_takes():
    assert PlanSetting().adapter == LoRAConfig()
    assert PlanSetting(method="dora", lora=LoRAConfig(rank=8)).adapter == LoRAConfig(rank=8, method="dora")
    assert PlanSetting(method="qlora", lora=LoRAConfig(method="dora")).adapter == LoRAConfig(method="dora")
    assert PlanSetting(method="full").adapter is None
