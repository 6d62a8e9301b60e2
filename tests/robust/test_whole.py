"""An output appears with everything in it or not at all, from the inputs that the run began with."""

import functools
import os
import re
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

from eckart import training
from eckart.checkpoint import InputFiles
from eckart.cli.main import app
from eckart.operations.merging import restored
from eckart.report.figures import style
from eckart.report.page import bundle, page_html, read_results
from eckart.training.sweep_cell import train_here

from .commands import COMMANDS

DONE = (0, 3)  # `plan` ends with 3 where a setting does not fit
# Times and memory differ from run to run, and TensorBoard's files have the time in their names.
MEASURED = re.compile(rb'"(seconds|peak_rss_bytes|peak_bytes)":\s*(\{[^}]*\}|[^,}\]]+)|"tensorboard/[^"]*",?\s*')

FIGURES, PAGE = (Figure, "savefig"), (bundle, "script")
LAST = [
    *(("analyze", FIGURES), ("analyze", PAGE), ("analyze adapter", FIGURES), ("extract", PAGE), ("compare", FIGURES)),
    *(("extract distill", PAGE), ("demo", FIGURES), ("demo", PAGE)),
    *(("train", FIGURES), ("train", PAGE), ("sweep", FIGURES), ("sweep", PAGE), ("report", PAGE), ("plan", FIGURES)),
    ("unmerge", (restored, "compare_restored")),
]
RESUMED = {
    "analyze": "base",
    "analyze adapter": "adapter",
    "extract": "tuned",
    "extract file": "tuned.safetensors",
    "extract distill": "tuned",
    "extract budget": "tuned",
    "extract gain": "tuned",
    "resize": "adapter",
    "resize file": "kohya.safetensors",
    "resize distill": "adapter",
    "resize gain": "adapter",
    "combine": "adapter",
    "combine eval": "adapter",
    "merge": "base",
    "unmerge": "merged",
    "unmerge alone": "merged",
    "quantize": "base",
    "convert lora": "adapter",
}
READ = RESUMED | {
    "convert": "adapter",
    "convert file": "adapter",
    "convert comfyui": "unet.safetensors",
    "convert diffusers": "unet.safetensors",
    "convert mlx": "adapter",
    "convert gguf": "adapter",
    "convert for": "adapter",
    "resize for": "adapter",
    "compare": "base",
    "compare merge": "merged",
    "train": "base",
    "sweep": "base",
    "quantize calibrated": "base",
    "quantize distill": "base",
    "merge calibrated": "nf4",
    "correct": "nf4",
}
NOT_READ = {
    "report": "it shows the results that it has read whole before it begins",
    "plan": "it reads headers and a config, of which nothing is copied",
    "demo": "it writes its own base once, and the other parts from that",
}


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(style, "DPI", 20)
    monkeypatch.setattr(training, "sweep", functools.partial(training.sweep, run_cell=train_here))


def stop(*_: object, **__: object) -> None:
    """In place of a function: the run ends here."""
    raise RuntimeError("stopped")  # noqa: EM101


def run(name: str, *options: str) -> Result:
    return CliRunner().invoke(app, COMMANDS[name].arguments(output(name), *options))


def output(name: str) -> Path:
    return Path(f"out{COMMANDS[name].suffix}")


def is_there(name: str) -> bool:
    """Whether the output is; the folder of a sweep is from its first cell on, and that of a demo from its base on."""
    last = {"sweep": "sweep.json", "demo": "adapter"}
    return (output(name) / last.get(name, "")).exists()


def content(name: str) -> dict[str, bytes]:
    """The bytes of every file of the output, without what is measured and the place where this was."""
    files = sorted([output(name), *output(name).rglob("*")])
    return {
        str(file): MEASURED.sub(b"", file.read_bytes()).replace(os.fsencode(Path.cwd()), b"")
        for file in files
        if file.is_file() and "tensorboard" not in file.parts and file.name != "lock"
    }


def different(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """Names of the files that are not the same."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def replace(source: str) -> None:
    """Replace the weights of an input by others, with the same size and modification time."""
    path = Path(source)
    file = path if path.is_file() else next(path.glob("*model.safetensors"))
    changed = bytearray(file.read_bytes())
    changed[-2] ^= 0x10
    other = file.with_name("replacement")
    other.write_bytes(changed)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)


@pytest.fixture
def reference(originals, tmp_path, monkeypatch):
    """Command -> what an unbroken run of it writes, with an input replaced before it if one is given."""

    def write(name: str, source: str | None = None) -> dict[str, bytes]:
        with monkeypatch.context() as patch:
            patch.chdir(shutil.copytree(originals, tmp_path / "copy", symlinks=True))
            if source is not None:
                replace(source)
            ended = run(name)
            assert ended.exit_code in DONE, ended.output
            return content(name)

    return write


def test_every_command_has_a_row_or_a_reason() -> None:
    assert READ.keys() | NOT_READ.keys() == COMMANDS.keys()
    assert READ.keys().isdisjoint(NOT_READ)


@pytest.mark.parametrize(("name", "last"), LAST)
def test_a_command_that_ends_while_drawing_or_measuring_leaves_no_output_and_its_repetition_gives_the_same_bytes(
    name, last, inputs, reference, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(*last, stop)
        assert run(name).exit_code not in DONE
    assert not is_there(name)
    repeated = run(name)
    assert repeated.exit_code in DONE, repeated.output
    assert ("resuming: " in repeated.stderr) == (name in RESUMED)
    assert not (names := different(content(name), reference(name))), names


@pytest.mark.parametrize(
    "name", ["analyze", "analyze adapter", "extract", "compare", "compare merge", "train", "sweep"]
)
def test_the_page_of_a_command_is_the_page_that_report_makes_of_its_folder(name, inputs) -> None:
    assert run(name).exit_code == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert page == page_html(read_results(["out"]))


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_does_not_resume_on_an_input_that_was_replaced(name, inputs, reference, monkeypatch) -> None:
    check = InputFiles.check_unchanged

    def stop_at_the_end(files: InputFiles) -> None:
        (stop if any(file.is_relative_to(RESUMED[name]) for file in files._digests) else check)(files)

    with monkeypatch.context() as patch:
        patch.setattr(InputFiles, "check_unchanged", stop_at_the_end)
        assert run(name).exit_code not in DONE
    replace(RESUMED[name])
    repeated = run(name)
    assert repeated.exit_code == 0, repeated.output
    assert "starting over: inputs or options changed" in repeated.stderr
    assert not (names := different(content(name), reference(name, RESUMED[name]))), names


def test_a_training_does_not_resume_on_another_model(inputs, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", stop)
        assert run("train").exit_code not in DONE
    replace("base")
    refused = run("train")
    assert refused.exit_code == 1
    assert "model_files: now" in refused.stderr
    assert run("train", "--no-resume").exit_code == 0


@pytest.mark.parametrize("name", READ)
def test_an_input_that_is_replaced_during_the_run_is_named_and_nothing_is_written(name, inputs, monkeypatch) -> None:
    source, check = READ[name], InputFiles.check_unchanged
    replaced = iter([source])

    def late(files: InputFiles) -> None:
        is_read = any(file.is_relative_to(source) for file in files._digests)
        for each in replaced if is_read else ():
            replace(each)
        check(files)

    monkeypatch.setattr(InputFiles, "check_unchanged", late)
    refused = run(name)
    assert refused.exit_code == 1, refused.output
    assert re.search(rf"inputs changed during the run.*\n  - {source}\S*: written, replaced or removed", refused.stderr)
    assert not is_there(name)
