"""Several adapters in one command: a folder for the results, and a line for each."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eckart.cli.output import note, show_json
from eckart.errors import EckartError, OptionError


def outputs_of(adapters: Sequence[str], folder: Path) -> dict[str, Path]:
    """The output of each adapter, under its own name in a folder, which is made.

    Raises:
        OptionError: the folder is a file, or two adapters have one name.
    """
    outputs = {adapter: folder / Path(adapter.partition("@")[0]).name for adapter in adapters}
    if folder.is_file() or folder.suffix == ".safetensors":
        msg = f"several adapters are written into a folder, and {folder} is the name of a file"
        raise OptionError(msg)
    if len(set(outputs.values())) < len(adapters):
        msg = "several adapters have the same name, which their results would have too"
        raise OptionError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    return outputs


def refuse_for_several(**options: object) -> None:
    """Refuse options that are of one adapter.

    Raises:
        OptionError: one is given.
    """
    given = [name for name, value in options.items() if value]
    if given:
        msg = f"`{given[0]}` is for one adapter, and several are given"
        raise OptionError(msg)


def write_each(adapters: Sequence[str], one: Callable[[str], tuple[dict[str, Any], str]], *, as_json: bool) -> None:
    """Write each result and show its line; those that are refused are named, and the others still written.

    Raises:
        OptionError: some were refused.
    """
    results, refused = [], []
    for adapter in adapters:
        try:
            result, line = one(adapter)
        except EckartError as error:
            refused.append(adapter)
            note(f"{adapter}: {error}")
            continue
        results.append(result)
        if not as_json:
            sys.stdout.write(f"{line}\n")
    if as_json:
        show_json({"results": results})
    if refused:
        msg = f"{len(refused)} of {len(adapters)} adapters were refused"
        raise OptionError.listing(msg, refused)
