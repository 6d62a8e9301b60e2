"""Texts and second moments for one command: collected next to its output, or in a file that others can use too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.calibration.collect import collect_moments, moments_key
from eckart.calibration.texts import LENGTH, CalibrationText, read_texts
from eckart.checkpoint.model_config import context_length
from eckart.engine import ShardDone
from eckart.engine.working_folder import WorkingFolder, calibration_folder
from eckart.errors import OptionError
from eckart.evaluation import load_tokenizer
from eckart.formats.sources import open_model
from eckart.operations.moments import Moments

if TYPE_CHECKING:
    from eckart.checkpoint import Checkpoint
    from eckart.engine import Execution
    from eckart.training.records import Source


_NAME = "moments.safetensors"


@dataclass(frozen=True)
class Calibrated:
    """What a calibrated operation needs.

    Attributes:
        text: the text that the moments are from, and held-out text of the same kinds.
        moments: second moments of the model's layer inputs.
    """

    text: CalibrationText
    moments: Moments


@contextmanager
def calibrated(
    model: str | Path,
    texts: "Sequence[Source]",
    *,
    output: Path,
    file: Path | None = None,
    execution: "Execution",
) -> Iterator[Calibrated]:
    """Second moments of a model on texts, reused if they exist.

    Args:
        model: SOURCE of the model, with its tokenizer.
        texts: one source for each kind of text.
        output: what the command writes; without `file`, the moments are in a folder next to it until the block ends.
        file: where to keep the moments.
        execution: device, progress, resume.

    Raises:
        OptionError: `file` has the moments of another model or text.
        EckartError: what `read_texts` and `collect_moments` raise.
    """
    checkpoint = open_model(model)
    length = min(LENGTH, context_length(checkpoint.config) or LENGTH)
    text = read_texts(texts, load_tokenizer(model), length=length)
    working = None if file else WorkingFolder(calibration_folder(output), output, rf"\.?{_NAME}(\.partial)?")
    try:
        place = file or calibration_folder(output) / _NAME
        yield Calibrated(text, _moments(checkpoint, text, place, kept=file is not None, execution=execution))
    except BaseException as error:
        if working and (isinstance(error, ShardDone) or not isinstance(error, Exception)):
            working.release()  # another share, or the same command, continues with them
        elif working:
            working.close()
        raise
    if working:
        working.close()


def _moments(
    checkpoint: "Checkpoint", text: CalibrationText, place: Path, *, kept: bool, execution: "Execution"
) -> Moments:
    """The moments in a file, collected unless it has those of this model and text."""
    moments = Moments(place) if place.exists() else None
    if moments is None or moments.model != moments_key(checkpoint, text.kinds):
        if moments is not None and kept:
            msg = f"{place} has the moments of another model or text; choose another file for `moments`"
            raise OptionError(msg)
        alone = replace(execution, shard=None)  # every share needs all moments
        moments = collect_moments(checkpoint, text.kinds, place, execution=alone, force=not kept)
    return moments
