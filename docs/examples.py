"""The examples of a page: its commands and Python blocks, run in order, and the output shown for them.

A page is Markdown, or a command's source file whose docstring ends with examples. In Markdown, a fence whose first
line begins with `$ ` contains commands, each followed by its output; a `text` fence right after a `python` fence is
what that prints. In a docstring, every backslash-b paragraph that begins with `$ ` is such a fence, and has no blank
lines. A line `…` stands for omitted lines.
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
HELP = re.compile(r'^(?P<indent>    )\\b\n(?P<body>    \$ .*?\n)(?=\n|    """)', re.MULTILINE | re.DOTALL)
HELP_WIDTH = 78  # columns that typer leaves in a terminal of 80
GAP = "…"
REFUSED = "eckart: "

Shell = Callable[[str], tuple[int, str, str]]
"""Runs a command in the current folder: exit status, stdout and stderr."""


@dataclass
class Example:
    """A command, or a Python block, and the lines that the page shows of its output.

    Attributes:
        kind: `console` or `python`.
        source: what is run; the continued lines of a command are joined.
        written: the lines on the page.
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

    def as_shown(self, *, blank_lines: bool = True) -> list[str]:
        """Its output with the same parts omitted as on the page.

        Raises:
            ValueError: a part that the page shows between two gaps is missing in the output.
        """
        if self.output is None:
            return self.shown
        return elided(self.shown, [line for line in self.output if blank_lines or line.strip()])


@dataclass
class Block:
    """Consecutive examples on a page; `start` and `end` delimit their text.

    Attributes:
        indent: before every line.
        examples: in their order.
        shows_python: whether the text is the output of a Python block elsewhere.
        in_docstring: whether the text is part of a Python string.
    """

    start: int
    end: int
    indent: str
    examples: list[Example] = field(default_factory=list)
    shows_python: bool = False
    in_docstring: bool = False

    def text(self) -> str:
        """The text with the outputs of the examples that ran."""
        lines = []
        for example in self.examples:
            shown = example.as_shown(blank_lines=not self.in_docstring)
            lines += shown if self.shows_python else [*example.written, *shown]
            if not self.shows_python and not self.in_docstring and example is not self.examples[-1] and shown:
                lines.append("")
        if self.in_docstring:
            lines = [line.replace("\\", "\\\\") for line in fitted(lines, HELP_WIDTH)]
        return "".join(f"{self.indent}{line}".rstrip() + "\n" for line in lines)


def blocks_of(path: Path) -> list[Block]:
    """The examples of a Markdown page or of a command's docstring."""
    text = path.read_text(encoding="utf-8")
    return help_blocks(text) if path.suffix == ".py" else blocks(text)


def blocks(page: str) -> list[Block]:
    """The fences of a page that contain examples, and those that show what a Python block prints."""
    result, code = [], None
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
            result.append(block)
    return result


def help_blocks(module: str) -> list[Block]:
    """The examples at the end of a command's docstring, from the source text of its file."""
    return [
        Block(match.start("body"), match.end("body"), match["indent"], in_docstring=True, examples=list(
            _commands([line.removeprefix(match["indent"]).replace("\\\\", "\\") for line in match["body"].splitlines()])
        ))
        for match in HELP.finditer(module)
    ]  # fmt: skip


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
    """The output with the same parts omitted as on the page.

    Raises:
        ValueError: a part that the page shows between two gaps is missing in the output.
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
        start = _position(part[0], actual, at)
        if start is None:
            msg = f"no line of the output begins like: {part[0]}"
            raise ValueError(msg)
        end = _position(part[-1], actual[: start + len(part) + 1], start + len(part) - 2)
        at = 1 + (start + len(part) - 1 if end is None else end)
        lines += [GAP, *actual[start:at]]
    last = parts[-1]
    return [*lines, GAP, *(actual[max(at, len(actual) - len(last)) :] if last else [])]


def _position(line: str, actual: list[str], start: int) -> int | None:
    """The first line from `start` on that begins with the same words; longer numbers may push words to the next."""
    begin = words(line)[:3]
    positions = (i for i in range(max(0, start), len(actual)) if words(actual[i])[: len(begin)] == begin)
    return next(positions, None) if begin else None


def fitted(lines: list[str], width: int) -> list[str]:
    """Lines of at most `width` columns: the last words of a longer line of prose begin the next one."""
    result, carried = [], ""
    for line in lines:
        if carried and (line.startswith((" ", "$ ")) or line in ("", GAP)):
            result.append(carried)
            carried = ""
        text = f"{carried} {line}" if carried else line
        carried = ""
        while len(text) > width and not text.startswith((" ", "$ ")) and " " in text:
            text, _, word = text.rpartition(" ")
            carried = f"{word} {carried}".strip()
        result.append(text)
    return [*result, carried] if carried else result


def words(text: str) -> list[str]:
    """The part of an output that does not depend on the numbers: words of four letters or more."""
    return re.findall(r"[^\W\d_]{4,}", text)


def run(page: list[Block], shell: Shell) -> None:
    """Run the examples of a page in the current folder, in order; Python blocks share their names.

    Raises:
        RuntimeError: a command failed, or did not fail although the page shows a refusal.
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
    output = output_of(example.source)
    if output and Path(output).is_symlink():
        Path(output).unlink()  # the page itself writes what other pages start from
    example.status, out, err = shell(example.source)
    refused = example.status != 0
    # Next to a result, stderr reports progress; without one it is what the command says.
    printed = out + err if refused else out or err
    example.output = [line.rstrip() for line in printed.strip("\n").splitlines()]
    if refused != example.expects_refusal:
        msg = f"exit status {example.status} of: {example.source}\n{out}{err}"
        raise RuntimeError(msg)


def output_of(command: str) -> str | None:
    """The value of a command's `-o`, where it has one."""
    pairs = itertools.pairwise(shlex.split(command))
    return next((value for option, value in pairs if option in ("-o", "--output")), None)


def rewritten(page: str, ran: list[Block]) -> str:
    """The page with the outputs of the examples that ran."""
    for block in reversed(ran):
        if block.shows_python or block.examples[0].kind == "console":
            page = page[: block.start] + block.text() + page[block.end :]
    return page
