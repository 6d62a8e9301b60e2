"""The metadata of a combined adapter, from that of its parts."""

from collections.abc import Sequence
from dataclasses import replace

from eckart.adapter.adapter import Adapter
from eckart.adapter.outline import AdapterOutline
from eckart.formats.lora_texts import merged_config
from eckart.formats.peft_tokens import FIELD, embedding_of, is_token_rows, tokens_of


def combined_frame(adapters: Sequence[Adapter], outlines: Sequence[AdapterOutline]) -> Adapter:
    """The result without layers and tensors: the first adapter's metadata, completed from the others."""
    first = adapters[0]
    bias = next((mode for each in adapters if (mode := each.config.get("bias", "none")) != "none"), None)
    fields = [found for each in adapters if (found := each.config.get(FIELD))]
    tokens = fields[0] if fields else None
    if any(field != tokens for field in fields):
        rows = ((name, each) for each in outlines for name in each.modules_to_save if is_token_rows(name))
        tokens = {embedding_of(name).removesuffix(".weight"): tokens_or_reason(name, each) for name, each in rows}
    return replace(
        first,
        layers={},
        modules_to_save={},
        added={},
        carried={name: tensor for each in reversed(adapters) for name, tensor in each.carried.items()},
        base_model=next((each.base_model for each in adapters if each.base_model), None),
        task_type=next((each.task_type for each in adapters if each.task_type), None),
        config=first.config
        | ({"bias": bias} if bias else {})
        | ({FIELD: tokens} if tokens else {})
        | merged_config(adapters),
    )


def tokens_or_reason(name: str, adapter: AdapterOutline) -> list[int] | str:
    """The tokens of saved rows, or why there are none."""
    try:
        return tokens_of(name, adapter.config, adapter.modules_to_save[name])
    except ValueError as fault:
        return str(fault)
