"""What lies beside the weights of a model folder: config and tokenizer."""

from eckart.checkpoint import Checkpoint
from eckart.result import Skipped


def has_companions(base: Checkpoint) -> bool:
    """Whether config and tokenizer lie beside the weights: anything might lie beside a lone file."""
    return base.folder is not None and (base.folder / "config.json").is_file()


def missing_companions(base: Checkpoint) -> list[Skipped]:
    """What a complete model folder would have and the base does not."""
    if has_companions(base):
        return []
    if any(info.file.suffix == ".gguf" for info in base.tensors.values()):
        file = next(iter(base.tensors.values())).file
        load = f"AutoTokenizer.from_pretrained({str(file.parent)!r}, gguf_file={file.name!r})"
        return [Skipped("tokenizer", f"it lies in the GGUF file; {load}.save_pretrained(OUT) adds it")]
    missing = [] if base.config else [Skipped("config.json", "the base has none")]
    return [*missing, Skipped("tokenizer", "the base has none")]
