"""Rows of an embedding that a PEFT adapter replaces, one for each token: `trainable_token_indices`.

The file has them as `<module>.token_adapter.trainable_tokens_delta`, which are the new rows, not differences, and an
`Adapter` keeps them under that name among its saved tensors. Source: PEFT's `TrainableTokensLayer`.
"""

from eckart.adapter.outline import AdapterBase

_END = ".token_adapter.trainable_tokens_delta"
FIELD = "trainable_token_indices"


def is_token_rows(name: str) -> bool:
    """Whether a saved tensor is rows of an embedding."""
    return name.endswith(_END)


def embedding_of(name: str) -> str:
    """The tensor that has the rows."""
    return name.removesuffix(_END) + ".weight"


def tokens_of(name: str, adapter: AdapterBase) -> list[int]:
    """The tokens whose rows a saved tensor contains.

    Raises:
        ValueError: the config does not give one for each row.
    """
    field, module = adapter.config.get(FIELD), name.removesuffix(_END)
    if isinstance(field, dict):
        field = next((value for key, value in field.items() if f".{module}".endswith(f".{key}")), None)
    tokens = field if isinstance(field, list) else []
    is_valid = all(isinstance(token, int) and token >= 0 for token in tokens) and len(set(tokens)) == len(tokens)
    rows = adapter.modules_to_save[name].shape[0]
    if not is_valid or len(tokens) != rows:
        msg = f"{name} has {rows} rows, and {FIELD} does not name as many different tokens"
        raise ValueError(msg)
    return tokens
