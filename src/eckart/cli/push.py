"""The option `--push`, which uploads a finished output to the hub."""

from pathlib import Path
from typing import Annotated

from eckart.cli.options import RESULT, in_group

Push = Annotated[
    str | None,
    in_group(RESULT, "--push", metavar="ORG/NAME", help="Also upload OUT to the hub; a new repository is private."),
]


def check_push(repository: str | None) -> None:
    """Refuse an upload that the hub would refuse, before any work; nothing if none is asked for."""
    if repository is not None:
        from eckart.operations import push

        push.check_push(repository)


def push_output(output: Path, repository: str | None, *, made_by: str) -> None:
    """Upload the finished output, and say where it is."""
    if repository is None:
        return
    from eckart.cli.output import note
    from eckart.operations import push

    for line in push.push(output, repository, made_by=made_by):
        note(line)
