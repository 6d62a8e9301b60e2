"""A base model and a full fine-tune of it, made on this machine: what an adapter can be extracted from.

The fine-tune is the base after some steps on Python's language reference; both are ordinary bfloat16 checkpoints.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from eckart.demo.base import base_record, finished, make_base, write_model
from eckart.demo.corpus import language_reference
from eckart.demo.package import MODEL
from eckart.evaluation import load_model, load_tokenizer
from eckart.training import FinetuneSettings, StepCallback, finetune, pack_texts

SEQUENCE_TOKENS = 256


@dataclass(frozen=True)
class Pair:
    """Folders of the base and of its fine-tune, and the losses of its training (none if it was there)."""

    base: Path
    tuned: Path
    losses: list[float]


def make_pair(
    folder: str | Path,
    settings: FinetuneSettings,
    *,
    model: str | Path = MODEL,
    force: bool = False,
    progress: StepCallback | None = None,
) -> Pair:
    """Write `folder`/base and `folder`/tuned; a finished part from the same settings is kept as it is.

    Args:
        folder: made where it is missing.
        settings: how the fine-tune is trained, on sequences of 256 tokens.
        model: SOURCE of the base, with its tokenizer.
        force: replace a part that comes from other settings.
        progress: called after every training step.

    Returns:
        The two folders, each with its tokenizer.

    Raises:
        OutputError: a part is there and comes from other settings, or from elsewhere.
        MissingExtraError, SourceError: the libraries or the model are not there.
    """
    folder = Path(folder)
    record = {**base_record(model), **asdict(settings), "sequence_tokens": SEQUENCE_TOKENS}
    base_done, tuned_done = finished(folder, {"base": base_record(model), "tuned": record}, force=force)
    base, tuned = make_base(folder, model=model, force=force), folder / "tuned"
    if base_done and tuned_done:
        return Pair(base, tuned, losses=[])
    # Read back from bfloat16, so that the difference holds the training and not the rounding of the base.
    trained, tokenizer = load_model(base), load_tokenizer(base)
    sequences = pack_texts(language_reference().training.values(), tokenizer, length=SEQUENCE_TOKENS)
    result = finetune(trained, sequences, settings, progress=progress)
    write_model(tuned, trained, tokenizer, record, force=force or tuned_done)
    return Pair(base, tuned, losses=result.losses)
