"""The examples of a page: its commands and Python blocks, run in order, and the output that it shows of them.

In a fence whose first line begins with `$ `, what follows a command up to the next one is its output. A `text` fence
right after a `python` fence is what that prints. A line `…` stands for lines that the page leaves out, and stays.
"""

import contextlib
import io
import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
GAP = "…"
REFUSED = "eckart: "

Shell = Callable[[str], tuple[int, str, str]]
"""Runs a command in the current folder: its exit status, stdout and stderr."""


@dataclass
class Example:
    """A command, or a Python block, and the lines that the page shows of its output.

    Attributes:
        kind: `console` or `python`.
        source: what runs; a command's continued lines joined.
        written: as the page has it.
        shown: its output on the page.
        output: what it printed when it ran, None until then.
        status: the exit status of a command.
    """

    kind: str
    source: str
    written: list[str]
    shown: list[str]
    output: list[str] | None = None
    status: int = 0

    @property
    def expects_refusal(self) -> bool:
        """Whether the page shows the command being refused."""
        return bool(self.shown) and self.shown[0].startswith(REFUSED)


@dataclass
class Block:
    """A fence of a page with what it holds; the bounds are those of its body in the page's text."""

    start: int
    end: int
    indent: str
    examples: list[Example] = field(default_factory=list)
    shows_python: bool = False

    def text(self) -> str:
        """The body as it should be, from the outputs of its examples."""
        lines = []
        for example in self.examples:
            shown = example.shown if example.output is None else elided(example.shown, example.output)
            lines += shown if self.shows_python else [*example.written, *shown]
            if not self.shows_python and example is not self.examples[-1] and shown:
                lines.append("")
        return "".join(f"{self.indent}{line}".rstrip() + "\n" for line in lines)


def blocks(page: str) -> list[Block]:
    """The fences of a page that hold examples, and those that show what a Python block prints."""
    found, code = [], None
    for match in FENCE.finditer(page):
        indent, kind = match["indent"], match["kind"]
        lines = [line.removeprefix(indent) for line in match["body"].splitlines()]
        block = Block(match.start("body"), match.end("body"), indent)
        if lines and lines[0].startswith("$ "):
            block.examples = list(_commands(lines))
        elif kind == "text" and code is not None and not page[code[0] : match.start()].strip():
            code[1].shown, block.examples, block.shows_python = lines, [code[1]], True
        code = None
        if kind == "python":
            example = Example("python", "\n".join(lines), lines, [])
            block.examples, code = [example], (match.end(), example)
        if block.examples:
            found.append(block)
    return found


def _commands(lines: list[str]) -> Iterator[Example]:
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        first = start
        while lines[first].endswith("\\"):
            first += 1
        source = " ".join(line.rstrip("\\").strip() for line in lines[start : first + 1]).removeprefix("$ ")
        shown = lines[first + 1 : end]
        while shown and not shown[-1].strip():
            shown.pop()
        yield Example("console", source, lines[start : first + 1], shown)


def elided(shown: list[str], actual: list[str]) -> list[str]:
    """The output with the same parts left out as the page leaves out.

    Raises:
        ValueError: a part that the page shows between two gaps is not in the output.
    """
    parts: list[list[str]] = [[]]
    for line in shown:
        if line.strip() == GAP:
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) == 1:
        return actual
    lines, at = list(actual[: len(parts[0])]), len(parts[0])
    for part in filter(None, parts[1:-1]):
        start = _find(part[0], actual, at)
        if start is None:
            msg = f"no line of the output begins like: {part[0]}"
            raise ValueError(msg)
        end = _find(part[-1], actual[: start + len(part) + 1], start + len(part) - 2)
        at = 1 + (start + len(part) - 1 if end is None else end)
        lines += [GAP, *actual[start:at]]
    last = parts[-1]
    return [*lines, GAP, *(actual[max(at, len(actual) - len(last)) :] if last else [])]


def _find(line: str, actual: list[str], start: int) -> int | None:
    """The first line from `start` on that begins with the same words; numbers may have moved the others to the next."""
    begin = words(line)[:3]
    found = (i for i in range(max(0, start), len(actual)) if words(actual[i])[: len(begin)] == begin)
    return next(found, None) if begin else None


def words(text: str) -> list[str]:
    """What of an output does not hang on the numbers: words of four letters or more."""
    return re.findall(r"[^\W\d_]{4,}", text)


def run(page: list[Block], shell: Shell) -> None:
    """Run the examples of a page in the current folder, in order; Python blocks share their names.

    Raises:
        RuntimeError: a command ended as it should not.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    for block in page:
        for example in block.examples:
            if example.kind == "console":
                _run_command(example, shell)
            elif not block.shows_python:
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(compile(example.source, "<page>", "exec"), names)
                example.output = printed.getvalue().splitlines()


def _run_command(example: Example, shell: Shell) -> None:
    arguments = shlex.split(example.source)
    for option, value in itertools.pairwise(arguments):
        if option in ("-o", "--output") and Path(value).is_symlink():
            Path(value).unlink()  # the page makes itself what others are given
    example.status, out, err = shell(example.source)
    refused = example.status != 0
    # Beside a result stderr tells the progress; alone it is what the command says.
    printed = out + err if refused else out or err
    example.output = [line.rstrip() for line in printed.strip("\n").splitlines()]
    if refused != example.expects_refusal:
        msg = f"exit status {example.status} of: {example.source}\n{out}{err}"
        raise RuntimeError(msg)


def rewritten(page: str, found: list[Block]) -> str:
    """The page with the outputs of examples that ran in the place of those it shows."""
    for block in reversed(found):
        if block.shows_python or block.examples[0].kind == "console":
            page = page[: block.start] + block.text() + page[block.end :]
    return page
