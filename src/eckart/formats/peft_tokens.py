"""Rows of an embedding that a PEFT adapter replaces, one for each token: `trainable_token_indices`.

The file has them as `<module>.token_adapter.trainable_tokens_delta`, which are the new rows, not differences, and an
`Adapter` keeps them under that name among its saved tensors. Source: PEFT's `TrainableTokensLayer`.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.adapter.outline import TensorOutline

_END = ".token_adapter.trainable_tokens_delta"
FIELD = "trainable_token_indices"


def is_token_rows(name: str) -> bool:
    """Whether a saved tensor is rows of an embedding."""
    return name.endswith(_END)


def embedding_of(name: str) -> str:
    """The tensor that has the rows; the name itself if it is not one of rows."""
    return name.removesuffix(_END) + ".weight" if is_token_rows(name) else name


def rows_of(tensor: str) -> str:
    """The name of rows of a tensor; the reverse of `embedding_of`."""
    return tensor.removesuffix(".weight") + _END


def tokens_of(name: str, config: Mapping[str, Any], rows: "Tensor | TensorOutline") -> list[int]:
    """The tokens whose rows a saved tensor contains.

    Args:
        name: its name.
        config: fields of the adapter's config.
        rows: the tensor, or its outline.

    Raises:
        ValueError: the config does not give one for each row.
    """
    field = config.get(FIELD)
    if isinstance(field, dict):
        # PEFT writes the same rows again for a layer that shares the embedding's weight, which the field need not name.
        shared = next(iter(field.values())) if len(field) == 1 else None
        field = next((value for key, value in field.items() if _is_of(name, key)), shared)
    tokens = field if isinstance(field, list) else []
    is_valid = all(type(token) is int and token >= 0 for token in tokens) and len(set(tokens)) == len(tokens)
    if not tokens or not is_valid or rows.ndim != 2 or len(tokens) != len(rows):
        msg = f"{name} has the shape {tuple(rows.shape)}, and {FIELD} does not name as many different tokens"
        raise ValueError(msg)
    return tokens


def tokens_field(config: Mapping[str, Any], saved: Collection[str]) -> dict[str, Any]:
    """The field of the config as far as rows of its embeddings are among the saved tensors; {} if none are."""
    field, rows = config.get(FIELD), [name for name in saved if is_token_rows(name)]
    if isinstance(field, dict) and len(field) > 1:
        field = {key: value for key, value in field.items() if any(_is_of(name, key) for name in rows)}
    return {FIELD: field} if field and rows else {}


def missing_token(tokens: Collection[int], size: int) -> int | None:
    """The first token between those of an embedding of `size` rows and the last of `tokens` that is in neither."""
    new = {token for token in tokens if token >= size}
    return next((token for token in range(size, size + len(new)) if token not in new), None)


def with_rows(tensor: "Tensor", rows: "Tensor", tokens: list[int]) -> "Tensor":
    """A copy of an embedding with other rows for some tokens, and with as many rows as the last of them needs."""
    result = tensor.new_zeros(max(len(tensor), *(token + 1 for token in tokens)), *tensor.shape[1:])
    result[: len(tensor)] = tensor
    result[tokens] = rows.to(result)
    return result


def _is_of(name: str, key: str) -> bool:
    """Whether a key of the field names the module of these rows."""
    return f".{name.removesuffix(_END)}".endswith(f".{key}")
