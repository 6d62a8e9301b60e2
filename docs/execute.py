"""Run the examples of pages on SmolLM2-135M and write what they print into the pages.

    python docs/execute.py                      # all pages; README.md, written by hand, is only checked
    python docs/execute.py docs/start.md        # one page
    python docs/execute.py --check              # change nothing, tell what differs in more than numbers

Each page gets a folder of its own under build/docs, with links to what the examples start from: `base` and `tuned`, a
model and its full fine-tune; `adapter` and `other`, an extracted and a trained adapter; `notes`, a folder of texts;
`training.txt` and `heldout.txt`. They are made once, in some minutes on two cores.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from examples import Block, blocks, elided, rewritten, run, words

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
INPUTS = ROOT / "build" / "docs" / "inputs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FINE_TUNE = {"steps": 10}
NOTES_CHARS = 120_000
HELD_OUT_CHARS = 6_000
ADAPTERS = {
    "adapter": "extract base tuned --rank 32",
    "other": "train base training.txt --rank 8 --alpha 16 --dropout 0 --steps 40 --batch-size 4 --max-length 256 "
    "--learning-rate 2e-3 --eval-data heldout.txt",
}


def main() -> None:
    """Run the pages that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=PAGES)
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    make_inputs(INPUTS)
    failed = False
    for page in (path.resolve() for path in options.pages):
        text = page.read_text(encoding="utf-8")
        found = blocks(text)
        if not found:
            continue
        print(page.relative_to(ROOT), flush=True)
        with in_folder(page):
            run(found, shell)
        if options.check or page.parent == ROOT:
            failed |= differs(found)
        else:
            page.write_text(rewritten(text, found), encoding="utf-8")
    sys.exit(int(failed))


def make_inputs(folder: Path) -> None:
    """What the examples start from; what is there is kept."""
    from eckart.demo import language_reference, make_pair
    from eckart.training import FinetuneSettings

    corpus = language_reference()
    make_pair(folder, FinetuneSettings(**FINE_TUNE))
    write_texts(folder, corpus.training, "\n\n".join(corpus.held_out.values())[:HELD_OUT_CHARS])
    for name, command in ADAPTERS.items():
        if not (folder / name).exists():
            subprocess.run([sys.executable, "-m", "eckart", *command.split(), "-o", name], cwd=folder, check=True)


def write_texts(folder: Path, topics: dict[str, str], held_out: str) -> None:
    """`notes`, a file a topic, `training.txt` of all topics, and `heldout.txt`."""
    (folder / "notes").mkdir(parents=True, exist_ok=True)
    room = NOTES_CHARS
    for name, text in topics.items():
        if len(text) <= room:
            (folder / "notes" / f"{name}.txt").write_text(text, encoding="utf-8")
            room -= len(text)
    (folder / "training.txt").write_text("\n\n".join(topics.values()), encoding="utf-8")
    (folder / "heldout.txt").write_text(held_out, encoding="utf-8")


def in_folder(page: Path) -> contextlib.AbstractContextManager[None]:
    """The page's folder, fresh, as the current one."""
    name = "-".join(page.relative_to(ROOT).with_suffix("").parts)
    return fresh_folder(INPUTS.with_name(name), INPUTS)


def fresh_folder(folder: Path, inputs: Path) -> contextlib.AbstractContextManager[None]:
    """`folder` with links to all inputs and nothing else, as the current one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in inputs.iterdir():
        (folder / path.name).symlink_to(path)
    return contextlib.chdir(folder)


def shell(command: str) -> tuple[int, str, str]:
    """Run a command line as a reader would."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout, done.stderr


def differs(found: list[Block]) -> bool:
    """Tell the outputs whose words are not those that the page shows."""
    different = False
    for example in (example for block in found for example in block.examples if not block.shows_python):
        if not example.shown:
            continue
        actual = elided(example.shown, example.output or [])
        if words("\n".join(actual)) != words("\n".join(example.shown)):
            different = True
            print(f"  $ {example.source}", *(f"    {line}" for line in actual), sep="\n")
    return different


if __name__ == "__main__":
    main()
