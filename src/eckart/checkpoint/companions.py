"""The files next to the weights of a model folder: config and tokenizer."""

from eckart.checkpoint.checkpoint import Checkpoint
from eckart.result import Skipped


def has_companions(base: Checkpoint) -> bool:
    """Whether the weights are in a model folder: files next to a lone weight file may have nothing to do with it."""
    return base.folder is not None and (base.folder / "config.json").is_file()


def missing_companions(base: Checkpoint) -> list[Skipped]:
    """Parts of a complete model folder that the base lacks."""
    if has_companions(base):
        return []
    if any(info.file.suffix == ".gguf" for info in base.tensors.values()):
        file = next(iter(base.tensors.values())).file
        load = f"AutoTokenizer.from_pretrained({str(file.parent)!r}, gguf_file={file.name!r})"
        return [Skipped("tokenizer", f"it is in the GGUF file; {load}.save_pretrained(OUT) adds it")]
    missing = [] if base.config else [Skipped("config.json", "the base has none")]
    return [*missing, Skipped("tokenizer", "the base has none")]
