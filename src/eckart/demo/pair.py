"""A base model and a full fine-tune of it, trained on this machine, from which an adapter can be extracted.

The fine-tune is the base after some steps on Python's language reference; both are ordinary bfloat16 checkpoints.
"""

from dataclasses import asdict
from pathlib import Path

from eckart.demo.base import base_record, is_finished, make_base, write_model
from eckart.demo.corpus import language_reference
from eckart.demo.package import MODEL
from eckart.engine.progress import NoProgress, Progress
from eckart.evaluation import load_model, load_tokenizer
from eckart.training import FinetuneResult, FinetuneSettings, fast_dtype, finetune, pack_texts

TUNED = "tuned"  # folder of the fine-tune
SEQUENCE_TOKENS = 256


def quick_fine_tune() -> FinetuneSettings:
    """Thirty steps of 4×256 tokens, as many as the demo's adapter is trained for."""
    return FinetuneSettings(steps=30, learning_rate=1e-4, compute_dtype=fast_dtype())


def make_pair(
    folder: str | Path,
    settings: FinetuneSettings,
    *,
    model: str | Path = MODEL,
    force: bool = False,
    progress: Progress = NoProgress(),
) -> FinetuneResult | None:
    """Write `folder`/base and `folder`/tuned; a part that exists with the same settings is kept.

    Args:
        folder: created if missing.
        settings: how the fine-tune is trained, on sequences of 256 tokens.
        model: SOURCE of the base, with its tokenizer.
        force: replace a part that has other settings.
        progress: receives the training steps.

    Returns:
        The training, None if both parts existed; each folder has a tokenizer.

    Raises:
        OutputError: a part exists with other settings or another origin.
        MissingExtraError, SourceError: the libraries or the model are not installed.
    """
    folder = Path(folder)
    record = {**base_record(model), **asdict(settings), "sequence_tokens": SEQUENCE_TOKENS}
    base_done, tuned_done = is_finished(folder, {"base": base_record(model), TUNED: record}, force=force)
    base = make_base(folder, model=model, force=force)
    if base_done and tuned_done:
        return None
    # Read back from bfloat16, so that the difference contains the training but not the rounding of the base.
    trained, tokenizer = load_model(base), load_tokenizer(base)
    sequences = pack_texts(language_reference().training.values(), tokenizer, length=SEQUENCE_TOKENS)
    result = finetune(trained, sequences, settings, progress=progress)
    write_model(folder / TUNED, trained, tokenizer, record, force=force or tuned_done)
    return result
