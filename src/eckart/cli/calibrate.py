"""Options of commands that look at what a model computes on text."""

from pathlib import Path
from typing import Annotated

from eckart.cli.options import in_group
from eckart.errors import OptionError

CALIBRATION = "Calibration"

Calibrate = Annotated[
    list[str] | None,
    in_group(
        *(CALIBRATION, "--calibrate"),
        metavar="TEXT",
        help="Text to calibrate with: a file, a folder or a dataset, as for train. Repeat it for each kind of text.",
    ),
]
Distill = Annotated[
    bool,
    in_group(
        *(CALIBRATION, "--distill"),
        help="Also train the correction's factors on TEXT, so that the model predicts as the original does.",
    ),
]
MomentsFile = Annotated[
    Path | None,
    in_group(
        *(CALIBRATION, "--moments"),
        metavar="FILE",
        help="Keep what calibration collected in FILE, and use it if it exists. [default: not kept]",
    ),
]
Steps = Annotated[
    int | None,
    in_group(
        *(CALIBRATION, "--steps"),
        metavar="N",
        min=1,
        help="Training steps of --distill, of 1,024 tokens. [default: one pass over TEXT]",
    ),
]


def check_steps(steps: int | None, *, distill: bool) -> None:
    """Refuse training steps without a training."""
    if steps and not distill:
        msg = "`steps` is the length of the distillation; add `distill`"
        raise OptionError(msg)
