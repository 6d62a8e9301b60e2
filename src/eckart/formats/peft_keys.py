"""Names of tensors in PEFT's files, without PEFT's prefix, and without the parts that wrappers and adapters add."""

import re
from collections.abc import Collection

PREFIX = "base_model.model."
# Of torch.compile, FSDP and activation checkpointing. DDP's `module.` may be a real name elsewhere than at the start.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What precedes PEFT's prefix belongs to what contains its model, such as a model with a value head, or Lightning's.
_LEADING = re.compile(r"^(?:.*?base_model\.model\.)?(?:module\.)*")
_ADAPTER_NAME = re.compile(
    r"\.(?:(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))|modules_to_save)\.(?!(?:weight|bias)$)[^.]+(?=\.|$)"
)
_TRAINING_ONLY = re.compile(r"\.lora_velora_embed(?:\.|$)")  # VeLoRA compresses activations for the backward pass
# Tensors of a layer of whose weight single rows are trained: its bias, and with a new vocabulary the whole weight.
_BESIDE_TOKENS = re.compile(r"\.token_adapter\.(?:base_layer\.)?(weight|bias)$")


def module_names(names: Collection[str]) -> dict[str, str]:
    """Names of a file's tensors as the model has them, each with the name in the file; copies of the base are dropped.

    Raises:
        ValueError: two tensors of the file have the same name in the model.
    """
    found: dict[str, str] = {}
    for name in names:
        if ".original_module." in name or _TRAINING_ONLY.search(name):
            continue
        plain = _LEADING.sub("", _WRAPPERS.sub("", name))
        plain = _ADAPTER_NAME.sub(lambda match: f".{match[1]}" if match[1] else "", plain)
        plain = _BESIDE_TOKENS.sub(r".\1", plain.replace(".modules_to_save.", "."))
        is_copy = ".modules_to_save." in name
        if plain in found and is_copy != (".modules_to_save." in found[plain]):
            # With `bias="all"`, or a larger vocabulary, PEFT writes a saved tensor under each of its names.
            found[plain] = found[plain] if is_copy else name
            continue
        if plain in found:
            msg = f"{found[plain]} and {name} are both {plain}: the file contains several adapters; save one of them"
            raise ValueError(msg)
        found[plain] = name
    return found
