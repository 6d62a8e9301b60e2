"""A language model and its tokenizer from what a user names: a checkpoint folder or a GGUF file."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eckart.checkpoint import locate
from eckart.errors import MissingExtraError, SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXTRA = "train"  # what brings transformers


def load_model(source: str | Path, *, dtype: torch.dtype = torch.float32) -> "PreTrainedModel":
    """The causal language model of a SOURCE, on the CPU, in evaluation mode.

    Args:
        source: a checkpoint folder, a GGUF file, a hub name or `pkg:DISTRIBUTION`.
        dtype: of its weights.

    Raises:
        MissingExtraError: transformers is not installed.
        SourceError: there is no such source, or transformers cannot build a language model from it.
    """
    transformers = require_transformers("loading a language model")
    folder, gguf = _place(source)
    options: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    if gguf is not None and hasattr(transformers, "GgufConfig"):
        # Newer releases would rather keep the weights packed where they can; adapters need them dense.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with quiet_transformers(), _refusals(f"{source} does not load as a causal language model"):
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, **options
        )
    if missing := sorted(found["missing_keys"]):
        # transformers would fill them with random numbers, and every loss would be of another model.
        msg = f"{source} does not load as a causal language model: these weights are missing"
        raise SourceError.listing(msg, missing)
    quantizer = getattr(model, "hf_quantizer", None)
    if gguf is not None and quantizer is not None:
        quantizer.remove_quantization_config(model)  # else the dense model still refuses to be saved
    return model.eval()


def load_tokenizer(source: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer that lies beside the weights of a SOURCE (errors as `load_model`)."""
    transformers = require_transformers("reading text")
    folder, gguf = _place(source)
    options = {} if gguf is None else {"gguf_file": gguf}
    with quiet_transformers(), _refusals(f"{source} holds no tokenizer that transformers reads"):
        return transformers.AutoTokenizer.from_pretrained(folder, **options)


def require_transformers(purpose: str) -> Any:
    """The transformers module, or the error that names the extra which brings it."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError.for_extra(EXTRA, purpose) from error
    return transformers


def _place(source: str | Path) -> tuple[str, str | None]:
    """Folder of a SOURCE, and the file's name if it is a GGUF file."""
    files = locate(source)
    first = files.weights[0].name
    if not files.is_gguf and not first.startswith("model"):
        msg = f"{source} is not where transformers looks for a language model: a folder with model.safetensors"
        raise SourceError(msg)
    return str(files.folder), first if files.is_gguf else None


@contextmanager
def _refusals(headline: str) -> Iterator[None]:
    """What transformers raises on a bad folder, as a refusal of ours."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        msg = f"{headline}: {error}"
        raise SourceError(msg) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars and advice: a library does not draw, its caller does."""
    logging = require_transformers("a language model").utils.logging
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # The GGUF reader's bar does not ask that switch; it only looks for a stream to draw on.
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
