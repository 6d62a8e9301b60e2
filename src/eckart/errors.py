"""The exceptions of eckart: one family, with all faults in one message.

A message names an option as the Python argument in backticks, such as `modules_to_save` or `modules_to_save=norm`; the
command line shows it as its flag, `--modules-to-save norm`.
"""

import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Self

SHARED_BY = 4  # faults with the same reason that are still listed one by one


class EckartError(Exception):
    """A refusal in the user's words: what arrived, what was expected, what to do."""

    @classmethod
    def listing(cls, headline: str, faults: Sequence[str], *, shown: int = 12) -> Self:
        """One error that lists every fault, the first `shown` in full and the rest as a count.

        A reason that many faults share is given once, with their names: faults are written `name: reason`.

        Args:
            headline: what is wrong, without a colon at its end.
            faults: one line each.
            shown: how many are listed.
        """
        items = _grouped(faults)
        lines = [f"  - {item}" for item in items[:shown]]
        if len(items) > shown:
            lines.append(f"  - and {len(items) - shown} more")
        return cls("\n".join([headline, *lines]))


class SourceError(EckartError):
    """A SOURCE that cannot be found, or whose files must not be read."""


class FileFormatError(EckartError):
    """A file that is truncated, malformed or hostile."""


class MismatchError(EckartError):
    """Two checkpoints, or a checkpoint and a pattern, that do not belong together."""


class OptionError(EckartError, ValueError):
    """An argument or option whose value is invalid or cannot be met."""


class OutputError(EckartError):
    """An output that cannot, or must not, be written."""


class NotFiniteError(EckartError, ValueError):
    """A tensor that contains NaN or Inf."""


class ClusterError(EckartError):
    """A cluster that cannot be reached or used, or that lost what it was working on."""


class MissingExtraError(EckartError):
    """An optional library that is not installed; the message gives the command that installs it."""

    @classmethod
    def for_extra(cls, extra: str, purpose: str) -> Self:
        """The error for `purpose`, which needs the libraries of an extra of eckart.

        The command names the libraries themselves, so it works for an installed package and for a source checkout; for
        a checkout without metadata it names the checkout.
        """
        checkout = f"'{Path(__file__).parents[2]}[{extra}]'"
        libraries = " ".join(f"'{name}'" for name in sorted(set(_requirements(extra)))) or checkout
        return cls(f"{purpose} needs the '{extra}' extra: pip install {libraries}")


def _grouped(faults: Sequence[str]) -> list[str]:
    """The faults, with each reason that more than SHARED_BY of them have given once."""
    names: dict[str, list[str]] = {}
    for fault in faults:
        name, _, reason = fault.partition(": ")
        names.setdefault(reason, []).append(name)
    items = []
    for fault in faults:
        reason = fault.partition(": ")[2]
        if not reason or len(names[reason]) <= SHARED_BY:
            items.append(fault)
        elif fault.startswith(f"{names[reason][0]}: "):
            first = ", ".join(names[reason][:3])
            items.append(f"{reason}: {first} and {len(names[reason]) - 3} more")
    return items


def _requirements(extra: str) -> Iterator[str]:
    """The requirements of an extra of the installed distribution, with nested extras of eckart resolved."""
    try:
        declared = metadata.requires("eckart") or []
    except metadata.PackageNotFoundError:
        return
    for line in declared:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", marker):
            nested = re.fullmatch(r"eckart\[(.*)\]", requirement)
            if nested:
                for inner in nested[1].split(","):
                    yield from _requirements(inner.strip())
            else:
                yield requirement
