"""Texts and second moments for one command: collected next to its output, or in a file that others can use too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eckart.calibration.collect import collect_moments, moments_key
from eckart.calibration.texts import CalibrationText, read_texts
from eckart.errors import OptionError
from eckart.evaluation import load_tokenizer
from eckart.formats.sources import open_model
from eckart.operations.moments import Moments

if TYPE_CHECKING:
    from eckart.engine import Execution
    from eckart.training.records import Source


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
        output: what the command writes; without `file`, the moments are next to it until the block succeeds.
        file: where to keep the moments.
        execution: device, progress, resume.

    Raises:
        OptionError: `file` has the moments of another model or text.
        EckartError: what `read_texts` and `collect_moments` raise.
    """
    checkpoint, text = open_model(model), read_texts(texts, load_tokenizer(model))
    place = file or output.with_name(f"{output.name}.moments.safetensors")
    moments = Moments(place) if place.exists() else None
    if moments is not None and moments.model != moments_key(checkpoint, text.kinds):
        if file is not None:
            msg = f"{file} has the moments of another model or text; choose another file for `moments`"
            raise OptionError(msg)
        moments = None
    if moments is None:
        alone = replace(execution, shard=None)  # every share needs all moments
        moments = collect_moments(checkpoint, text.kinds, place, execution=alone, force=file is None)
    yield Calibrated(text, moments)
    if file is None:
        place.unlink()
