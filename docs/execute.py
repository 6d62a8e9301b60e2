"""Run the examples of README, the docs and `--help` on SmolLM2-135M, and write what they print back into those files.

    python docs/execute.py                                # everything: README.md, docs/, src/eckart/cli/
    python docs/execute.py --resume                       # the same, without repeating commands that finished before
    python docs/execute.py --resume docs/start.md         # one page; commands it shares with others are not repeated
    python docs/execute.py --check                        # change no file, report outputs whose words differ

The examples run in build/docs/eckart-demo, the folder that the `START` commands write: `base`, a model; `adapter`, a
trained adapter; `tuned`, a full fine-tune; `text/training.txt` and `text/heldout.txt`; `extracted`, an adapter of the
fine-tune. A command that several pages show runs once, so it shows the same numbers everywhere. Allow an hour on two
idle cores.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from examples import Block, blocks_of, output_of, rewritten, run, words

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BUILD = ROOT / "build" / "docs"
FOLDER = "eckart-demo"
START = (
    f"eckart demo -o {FOLDER}",
    f"eckart demo -o {FOLDER} --fine-tune",
    "eckart extract base tuned -o extracted --rank 8 --eval text/heldout.txt",
)
GIVEN = ("base", "tuned", "adapter", "adapter-small", "merged", "text", "extracted")
COMMANDS = sorted(page.stem for page in (DOCS / "commands").glob("*.md") if page.stem != "index")
HELP = [ROOT / "src" / "eckart" / "cli" / f"{command}.py" for command in COMMANDS]
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *HELP]


def main() -> None:
    """Run the named pages, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=PAGES)
    parser.add_argument("--check", action="store_true", help="change no file")
    parser.add_argument("--resume", action="store_true", help="keep build/docs and the outputs recorded there")
    options = parser.parse_args()
    pages = [page.resolve() for page in options.pages]
    if clashes := sorted(reused_names(PAGES)):
        sys.exit("one name, one command: " + "; ".join(clashes))
    if not options.resume:
        shutil.rmtree(BUILD, ignore_errors=True)
    recorder = Recorder(BUILD)
    for command in START:
        print(f"$ {command}", flush=True)
        status, out, err = recorder.shell(command)
        if status:
            sys.exit(out + err)
    failed = [page for page in pages if not refresh(page, recorder, check=options.check)]
    sys.exit("not refreshed: " + ", ".join(str(page.relative_to(ROOT)) for page in failed) if failed else 0)


def refresh(page: Path, recorder: "Recorder", *, check: bool) -> bool:
    """Run the examples of a page and rewrite it; True on success, or with `check`, if the words are the same."""
    found = blocks_of(page)
    if not found:
        return True
    print(page.relative_to(ROOT), flush=True)
    try:
        recorder.run(found)
        if check:
            return not differs(found)
        page.write_text(rewritten(page.read_text(encoding="utf-8"), found), encoding="utf-8")
    except Exception as error:  # the other pages are refreshed all the same; main reports this one
        print(f"  {type(error).__name__}: {error}", flush=True)
        return False
    return True


class Recorder:
    """Runs commands in a folder's `eckart-demo` and records what they print, so that each runs only once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "outputs.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}

    def shell(self, command: str) -> tuple[int, str, str]:
        """Run a command line, or return what it printed before; `eckart demo` runs next to its folder."""
        key = normalized(command)
        if key not in self.outputs:
            self._record(key, shell(command, self.folder if key.startswith("eckart demo ") else self.folder / FOLDER))
        return tuple(self.outputs[key])

    def run(self, page: list[Block]) -> None:
        """Run a page's examples; its Python blocks share names, so they are recorded together."""
        blocks = [example for block in page for example in block.examples if example.kind == "python"]
        unique = list({id(example): example for example in blocks}.values())
        key = "\n".join(example.source for example in unique)
        with contextlib.chdir(self.folder / FOLDER):
            if unique and key in self.outputs:
                run([block for block in page if block.examples[0].kind == "console"], self.shell)
                for example, output in zip(unique, self.outputs[key], strict=True):
                    example.output = output
            else:
                run(page, self.shell)
        if unique:
            self._record(key, [example.output for example in unique])

    def _record(self, key: str, output: object) -> None:
        self.outputs[key] = output
        self.file.write_text(json.dumps(self.outputs, indent=1), encoding="utf-8")


def normalized(command: str) -> str:
    """A command with one space between its words."""
    return shlex.join(shlex.split(command))


def whole(command: str) -> str:
    """A normalized command, without the share of its work that it does."""
    return re.sub(r" --shard \S+", "", normalized(command))


def shell(command: str, folder: Path | None = None) -> tuple[int, str, str]:
    """Run a command line in a folder as a reader would; `cd` into the examples' folder has happened already."""
    if command == f"cd {FOLDER}":
        return 0, "", ""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )
    return done.returncode, done.stdout, done.stderr


def fresh_folder(folder: Path, inputs: Path) -> contextlib.AbstractContextManager[None]:
    """`folder` with links to all inputs and nothing else, as the current one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in inputs.iterdir():
        (folder / path.name).symlink_to(path)
    return contextlib.chdir(folder)


def reused_names(pages: list[Path]) -> Iterator[str]:
    """Output names that two different commands write, or that replace what the examples start from."""
    writers = {name: whole(command) for command in START if (name := output_of(command)) not in (None, FOLDER)}
    for page in pages:
        for example in (example for block in blocks_of(page) for example in block.examples):
            name = output_of(example.source) if example.source.startswith("eckart ") else None
            if name in (None, FOLDER) or example.expects_refusal:
                continue
            first = writers.setdefault(name, "the examples' folder" if name in GIVEN else whole(example.source))
            if first != whole(example.source):
                yield f"{name!r} ({page.relative_to(ROOT)}: {example.source}; elsewhere: {first})"


def differs(ran: list[Block]) -> bool:
    """Print the outputs whose words differ from those on the page; whether there are any."""
    different = False
    for block in ran:
        for example in block.examples:
            if block.shows_python or not example.shown:
                continue
            actual = example.as_shown(blank_lines=not block.in_docstring)
            if words("\n".join(actual)) != words("\n".join(example.shown)):
                different = True
                print(f"  $ {example.source}", *(f"    {line}" for line in actual), sep="\n")
    return different


if __name__ == "__main__":
    main()
