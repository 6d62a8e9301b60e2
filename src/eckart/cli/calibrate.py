"""Options of commands that look at what a model computes on text."""

from pathlib import Path
from typing import Annotated

from eckart.cli.options import in_group

CALIBRATION = "Calibration"

Calibrate = Annotated[
    list[str] | None,
    in_group(
        *(CALIBRATION, "--calibrate"),
        metavar="TEXT",
        help="Text to calibrate with: a file, a folder or a dataset, as for train. Repeat it for each kind of text.",
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
