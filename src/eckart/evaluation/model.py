"""A language model and its tokenizer from a SOURCE: a checkpoint folder, a GGUF file, a hub name or a package."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from eckart.checkpoint import locate
from eckart.checkpoint.remote.table import download, download_companions
from eckart.errors import MissingExtraError, SourceError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EXTRA = "train"  # the extra that installs transformers


def load_model(source: str | Path, *, dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """The causal language model of a SOURCE, on the CPU, in evaluation mode.

    Args:
        source: a checkpoint folder, a GGUF file, a hub name or `pkg:DISTRIBUTION`.
        dtype: data type of its weights, float32 by default.

    Raises:
        MissingExtraError: transformers is not installed.
        SourceError: there is no such source, or transformers cannot load a language model from it.
    """
    transformers = require_transformers("loading a language model")
    folder, gguf = folder_and_gguf_file(source)
    download(locate(source).weights)  # transformers reads only files of this machine
    options: dict[str, Any] = {} if gguf is None else {"gguf_file": gguf}
    if gguf is not None and hasattr(transformers, "GgufConfig"):
        # Newer releases keep the weights packed where they can; adapters need them dense.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with quiet_transformers(), source_errors(f"{source} does not load as a causal language model"):
        model, loading_info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="float32" if dtype is None else dtype, output_loading_info=True, **options
        )
    if missing := sorted(loading_info["missing_keys"]):
        # transformers would fill them with random numbers, and every loss would be wrong.
        msg = f"{source} does not load as a causal language model: these weights are missing"
        raise SourceError.listing(msg, missing)
    quantizer = getattr(model, "hf_quantizer", None)
    if gguf is not None and quantizer is not None:
        quantizer.remove_quantization_config(model)  # else the dense model still refuses to be saved
    return model.eval()


def outline_model(
    source: str | Path, *, dtype: "torch.dtype | None" = None, buffers: bool = False
) -> "PreTrainedModel":
    """The causal language model of a SOURCE on the meta device, from its config alone: modules and shapes.

    Args:
        source: as of `load_model`.
        dtype: data type of its weights, by default that of the config.
        buffers: keep buffers, which are computed from the config, on the CPU with their values.

    Raises:
        MissingExtraError: transformers is not installed.
        SourceError: there is no such source, or transformers has no language model for its config.
    """
    transformers = require_transformers("building a language model")
    import torch

    folder, gguf = folder_and_gguf_file(source)
    options = {} if gguf is None else {"gguf_file": gguf}
    with (
        quiet_transformers(),
        source_errors(f"{source} does not load as a causal language model"),
        _without_parameters() if buffers else torch.device("meta"),
    ):
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        return transformers.AutoModelForCausalLM.from_config(config, **({} if dtype is None else {"dtype": dtype}))


def _without_parameters() -> Any:
    """Inside the block, parameters of new modules are on the meta device, and buffers are not."""
    from accelerate import init_empty_weights

    return init_empty_weights(include_buffers=False)


def load_tokenizer(source: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer stored with the weights of a SOURCE; raises what `load_model` raises."""
    transformers = require_transformers("reading text")
    folder, gguf = folder_and_gguf_file(source)
    options = {} if gguf is None else {"gguf_file": gguf}
    with quiet_transformers(), source_errors(f"{source} contains no tokenizer that transformers can read"):
        return transformers.AutoTokenizer.from_pretrained(folder, **options)


def token_ids(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens of a text of any length, without the tokens that a tokenizer adds."""
    # verbose=False: a text longer than the model's window is split later, so there is nothing to warn of.
    return cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def opening_token(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The start token, if the tokenizer puts one before every text; otherwise no token."""
    return [token for token in cast("list[int]", tokenizer("")["input_ids"])[:1] if token == tokenizer.bos_token_id]


def require_transformers(purpose: str) -> Any:
    """The transformers module, or an error that names the extra that installs it."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError.for_extra(EXTRA, purpose) from error
    return transformers


def folder_and_gguf_file(source: str | Path) -> tuple[str, str | None]:
    """The folder of a SOURCE, and the name of the file in it if the source is a GGUF file."""
    files = locate(source)
    first = files.weights[0].name
    if not files.is_gguf and not first.startswith("model"):
        msg = f"transformers finds no language model in {source}: expected a folder with model.safetensors"
        raise SourceError(msg)
    download_companions(files.folder)
    if files.is_gguf:
        download(files.weights)
    return str(files.folder), first if files.is_gguf else None


@contextmanager
def source_errors(headline: str) -> Iterator[None]:
    """Turn the errors that transformers raises for a bad folder into a SourceError."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        msg = f"{headline}: {error}"
        raise SourceError(msg) from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and warnings inside the block."""
    logging = require_transformers("a language model").utils.logging
    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # The GGUF reader's bar ignores that switch and draws on stderr.
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
