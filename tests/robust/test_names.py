"""Names in files from strangers: what a terminal, a page or a figure would act on is shown as text."""

import json
import re

import pytest
import torch
from rich.text import Text
from safetensors.torch import save_file
from typer.testing import CliRunner

from eckart.cli.main import app
from eckart.cli.output import note, show
from eckart.cli.printable import printable
from eckart.cli.progress import StderrProgress

CLEARS, TITLES, REVERSES, COLORS = "\x1b[2J", "\x1b]0;title\x07", "\u202e", "\x9b31m"
NAME = f"layers.0.{CLEARS}{TITLES}{REVERSES}{COLORS}<script>alert(1)<b>[bold]$\\frac{{1$.q_proj"
ACTED_ON = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LINES = [
    *("analyze tuned", "analyze tuned --base base -o out", "analyze adapter", "extract base tuned --rank 1 -o out"),
    *("extract base tuned --rank 1 -o out -n", "resize adapter --rank 1 -o out", "combine adapter adapter -o out"),
    *(
        "merge base adapter -o out",
        "merge base other -o out",
        "unmerge base adapter -o out",
        "check adapter --base base",
    ),
    *(
        "convert adapter --to kohya -o out.safetensors",
        "convert adapter --to gguf -o out.gguf",
        "convert other --to peft",
    ),
    *("compare base tuned -o out", "compare adapter other", "quantize base -o out", "check damaged", "check other"),
    *("report wrong -o out.html", "plan base", "train base text.txt -o out", "sweep base text.txt -o out"),
]


def save_adapter(folder, module, **config) -> None:
    folder.mkdir()
    stated = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [module], "base_model_name_or_path": NAME}
    (folder / "adapter_config.json").write_text(json.dumps(stated | config))
    factors = {"lora_A": torch.ones(2, 8), "lora_B": torch.ones(8, 2)}
    tensors = {f"base_model.model.{module}.{name}.weight": factor for name, factor in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.fixture
def _hostile(tmp_path, monkeypatch) -> None:
    """A model, a fine-tune, adapters and results, with the name everywhere."""
    monkeypatch.chdir(tmp_path)
    for folder in ("base", "tuned"):
        (tmp_path / folder).mkdir()
        weights = {f"{NAME}.weight": torch.randn(8, 8), f"{NAME}.norm.weight": torch.ones(8)}
        save_file(weights, tmp_path / folder / "model.safetensors", {"format": NAME})
        (tmp_path / folder / "config.json").write_text(json.dumps({"model_type": NAME, "architectures": [NAME]}))
    save_adapter(tmp_path / "adapter", NAME)
    save_adapter(tmp_path / "other", f"{NAME}.more")
    save_adapter(tmp_path / "damaged", NAME, rank_pattern={NAME: NAME}, peft_type=NAME)
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "train.json").write_text(json.dumps({"format": NAME}))


@pytest.mark.parametrize("line", LINES)
@pytest.mark.usefixtures("_hostile")
def test_no_name_in_a_file_reaches_the_terminal_as_more_than_text(line, tmp_path) -> None:
    ended = CliRunner().invoke(app, line.split())
    assert "unexpected" not in ended.output
    assert ended.output
    assert not ACTED_ON.search(ended.output)
    for file in tmp_path.rglob("*.html"):
        assert "<script>alert" not in file.read_text()


def test_escape_sequences_are_shown_by_their_code_and_other_text_stays() -> None:
    assert printable(f"a{CLEARS}{REVERSES}{COLORS}\r") == r"a\x1b[2J\u202e\x9b31m\r"
    text = "é 中文 שלום 😀 →\tnext\nline"
    assert printable(text) == text


def test_everything_that_prints_shows_them(capsys) -> None:
    show(Text(NAME))
    note(NAME)
    with StderrProgress() as progress:
        progress.start("Stage", 1, "steps")
        progress.note(NAME)
        progress.update(1, NAME)
    printed = "".join(capsys.readouterr())
    assert printed.count(r"\x1b[2J") == 4
    assert not ACTED_ON.search(printed)
