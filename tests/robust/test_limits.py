"""What the system limits: the length of a name, the number of open files."""

import resource

import pytest
import torch
from safetensors.torch import load_file

import eckart
from eckart.adapter import Adapter, AdapterLayer
from eckart.checkpoint.dtypes import FLOAT32
from eckart.checkpoint.writer import TensorSpec, open_files
from eckart.errors import OutputError

LONG = {"250 characters": "n" * 250, "more than a name may have": "n" * 300, "250 bytes": "ü" * 125}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("command", ["merge", "resize", "analyze", "save"])
def test_an_output_whose_name_leaves_no_room_for_that_of_unfinished_work_is_refused(command, name, tmp_path):
    adapter, out = Adapter({"q": AdapterLayer(torch.ones(1, 4), torch.ones(4, 1), 1)}), tmp_path / LONG[name]
    run = {
        "merge": lambda: eckart.merge({"q.weight": torch.zeros(4, 4)}, adapter, out),
        "resize": lambda: eckart.resize(adapter, rank=1, output=out),
        "analyze": lambda: eckart.analyze({"q.weight": torch.ones(4, 4)}, output=out),
        "save": lambda: adapter.save(out),
    }
    with pytest.raises(OutputError, match="its name is longer than 240 bytes; choose a shorter one"):
        run[command]()


def test_a_model_may_have_more_shards_than_a_process_may_open_files(tmp_path):
    shards = {f"{number}.safetensors": [TensorSpec(str(number), (2,), FLOAT32)] for number in range(200)}
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, before[1]))
    try:
        with open_files(tmp_path, shards) as files:
            for number in range(200):
                files.write(str(number), torch.full((2,), float(number)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert load_file(tmp_path / "199.safetensors")["199"].tolist() == [199.0, 199.0]
