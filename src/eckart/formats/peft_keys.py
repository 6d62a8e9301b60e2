"""Names of tensors in PEFT's files, without PEFT's prefix, and without the parts that wrappers and adapters add."""

import re
from collections.abc import Collection

PREFIX = "base_model.model."
# Of torch.compile, FSDP and activation checkpointing. DDP's `module.` may be a real name elsewhere than at the start.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LEADING = re.compile(r"^(?:module\.)*(?:base_model\.model\.)?(?:module\.)*")
_ADAPTER_NAME = re.compile(
    r"\.(?:(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))|modules_to_save)\.(?!(?:weight|bias)$)[^.]+(?=\.|$)"
)


def module_names(names: Collection[str]) -> dict[str, str]:
    """Names of a file's tensors as the model has them, each with the name in the file; copies of the base are dropped.

    Raises:
        ValueError: two tensors of the file have the same name in the model.
    """
    found: dict[str, str] = {}
    for name in names:
        # With a larger vocabulary PEFT writes a saved embedding under each of its names.
        if ".original_module." in name or (
            ".modules_to_save." in name and name.replace(".modules_to_save.", ".") in names
        ):
            continue
        plain = _LEADING.sub("", _WRAPPERS.sub("", name))
        plain = _ADAPTER_NAME.sub(lambda match: f".{match[1]}" if match[1] else "", plain)
        plain = plain.replace(".modules_to_save.", ".")
        if plain in found:
            msg = f"{found[plain]} and {name} are both {plain}: the file contains several adapters; save one of them"
            raise ValueError(msg)
        found[plain] = name
    return found
