"""A base with tensors that only an adapter has: a new vocabulary's, the head of another task, and counters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.base_names import NamesOfBase
from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo
from eckart.checkpoint.derived import DerivedCheckpoint
from eckart.checkpoint.tying import is_vocabulary, tied_weights
from eckart.errors import MismatchError
from eckart.formats.peft_tokens import embedding_of, is_token_rows, missing_token, tokens_of, with_rows

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.adapter.adapter import Adapter
    from eckart.adapter.outline import TensorOutline

_HEADS = {"score", "classifier", "qa_outputs", "pre_classifier", "classification_head"}
_HIDDEN = {"pre_classifier", "dense"}  # of a head with two matrices the first
_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}


def extended(base: Checkpoint, adapters: Sequence[Adapter], weights: Sequence[float]) -> tuple[Checkpoint, Path | None]:
    """The base, with what an adapter saves for a vocabulary of another size, or as a head that the base lacks.

    Returns:
        the model; and for another vocabulary the folder of the adapter, which has its tokenizer.

    Raises:
        MismatchError: tensors of a new vocabulary are missing, several adapters bring them, or a weight is not 1.
    """
    names = NamesOfBase([*base.tensors, *base.tied], base)
    owners: dict[str, tuple[Adapter, str]] = {}  # of each supplied tensor, and its name there
    infos: dict[str, TensorInfo] = {}
    faults = []
    for adapter, weight in zip(adapters, weights, strict=True):
        for key, saved in adapter.outline().modules_to_save.items() if weight else ():
            own = embedding_of(key)
            name = None if _is_head(key) and own not in names.names else names.find(own)
            stored = base.tied.get(name, name) if name else None
            old = base.tensors[stored] if stored else None
            try:
                shape = _supplied(key, saved, old, adapter)
            except ValueError as fault:
                faults.append(str(fault))
                continue
            if shape is None:
                continue
            like = old or _first_floating(base)  # a new head has the model's dtype, not the adapter's
            target = stored or key
            if weight != 1:
                faults.append(f"{key}: it cannot be mixed with the base's, so its weight must be 1")
            elif target in owners and owners[target][0] is not adapter:
                faults.append(f"{key}: several adapters bring a tensor that the base has not; merge one of them")
            owners.setdefault(target, (adapter, key))
            infos.setdefault(target, replace(like, name=target, shape=shape, nbytes=prod(shape) * like.dtype.itemsize))
    if faults:
        msg = f"the adapters do not fit {base.source}"
        raise MismatchError.listing(msg, faults)
    return _with_tensors(base, owners, infos) if owners else (base, None)


def _supplied(key: str, saved: TensorOutline, old: TensorInfo | None, adapter: Adapter) -> tuple[int, ...] | None:
    """The shape of the tensor that an adapter supplies; None if the base has it as it is.

    Args:
        key: name of a tensor that the adapter saves.
        saved: its outline.
        old: the base's tensor, if it has one.
        adapter: the adapter.

    Raises:
        ValueError: rows of a larger vocabulary are missing.
    """
    if old is None:
        return saved.shape if _is_head(key) else None
    if not is_token_rows(key):
        return saved.shape if _is_counter(old, saved) or _is_resized(old, saved.shape) else None
    try:
        tokens = tokens_of(key, adapter.config, saved)
    except ValueError:
        return None  # as other misfits are refused
    count = max(tokens) + 1
    if saved.shape[1:] != old.shape[1:] or count <= old.shape[0]:
        return None
    if (missing := missing_token(tokens, old.shape[0])) is not None:
        msg = (
            f"{key}: it has rows up to token {count - 1} and the base {old.shape[0]} rows, but none has token "
            f"{missing}; resize_token_embeddings({count}) and save_pretrained write a base that has them all"
        )
        raise ValueError(msg)
    return (count, *old.shape[1:])


def _with_tensors(
    base: Checkpoint, owners: Mapping[str, tuple[Adapter, str]], infos: Mapping[str, TensorInfo]
) -> tuple[DerivedCheckpoint, Path | None]:
    """The base with these tensors of adapters in place of its own, or in addition to them; see `extended`.

    Raises:
        MismatchError: only some of the embeddings and output layers have the new vocabulary.
    """
    config = dict(base.config)
    same = {name for name, info in infos.items() if name in base.tensors and base.tensors[name].shape == info.shape}
    for name, (adapter, _) in owners.items() if config else ():
        if name not in same:
            config = _config_with(config, base.tensors.get(name), infos[name], adapter.task_type or "")
    tensors = {**base.tensors, **infos}
    resized = [name for name in owners if name in base.tensors and name not in same]
    cut = _cut_to(base, tensors, resized)
    tensors |= cut
    _check_vocabulary(base, tensors, [*resized, *cut])
    read = lru_cache(maxsize=1)(partial(_supplied_tensor, base, owners, infos))
    folders = [files[0].parent for name in resized if (files := owners[name][0].files)]
    computed = {
        **{name: partial(_rows, read, name) for name in owners},
        **{name: partial(base.rows, name) for name in cut},
    }
    tied = {**base.tied, **tied_weights(tensors, config)}
    model = DerivedCheckpoint(base, tensors, computed=computed, config=config, tied=tied)
    return model, folders[0] if folders else None


def _supplied_tensor(
    base: Checkpoint, owners: Mapping[str, tuple[Adapter, str]], infos: Mapping[str, TensorInfo], name: str
) -> Tensor:
    adapter, key = owners[name]
    saved = adapter.modules_to_save[key].detach().cpu().to(infos[name].dtype.torch)
    if not is_token_rows(key):
        return saved
    return with_rows(base.read(name), saved, tokens_of(key, adapter.config, saved))


def _rows(read: Callable[[str], Tensor], name: str, start: int, stop: int) -> Tensor:
    tensor = read(name)
    return tensor[start:stop] if tensor.ndim else tensor


def _config_with(config: dict[str, Any], old: TensorInfo | None, new: TensorInfo, task: str) -> dict[str, Any]:
    """A config with the vocabulary of a resized tensor, or with the class and labels of a head."""
    if old:
        return _with_vocabulary(config, old.shape[0], new.shape[0])
    result, ending, labels = dict(config), _CLASSES.get(task), new.shape[0]
    if ending and isinstance(config.get("architectures"), list):
        classes = [re.sub(r"(LMHeadModel|Model|For[A-Z]\w+)$", ending, str(cls)) for cls in config["architectures"]]
        result["architectures"] = classes
    is_last = new.name.split(".")[-2] not in _HIDDEN
    if len(new.shape) == 2 and is_last and ending in ("ForSequenceClassification", "ForTokenClassification"):
        # The last of a head's matrices has a row for each label.
        result["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        result["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
    return result


def _with_vocabulary(config: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    changed: dict[str, Any] = {
        key: _with_vocabulary(value, old, new) for key, value in config.items() if isinstance(value, dict)
    }
    if config.get("vocab_size") == old:
        changed["vocab_size"] = new
    return config | changed


def _cut_to(base: Checkpoint, tensors: Mapping[str, TensorInfo], resized: Sequence[str]) -> dict[str, TensorInfo]:
    """The base's other embeddings and output layers without the rows that a smaller vocabulary has not."""
    sizes = {base.tensors[name].shape[0]: tensors[name].shape[0] for name in resized}
    return {
        name: replace(info, shape=(size, *info.shape[1:]), nbytes=info.nbytes * size // info.shape[0])
        for name, info in base.tensors.items()
        if name not in resized
        and is_vocabulary(name)
        and (size := sizes.get(info.shape[0], 0) if info.shape else 0)
        and size < info.shape[0]
    }


def _check_vocabulary(base: Checkpoint, tensors: Mapping[str, TensorInfo], resized: Sequence[str]) -> None:
    """Refuse a new vocabulary that only some of the embeddings and output layers have."""
    grown = {name: tensors[name].shape[0] for name in resized}
    rows = {name: info.shape[0] for name, info in tensors.items() if info.shape and is_vocabulary(name)}
    sizes = {base.tensors[name].shape[0] for name in grown}
    short = [name for name, size in rows.items() if name not in grown and size in sizes]
    if grown and (short or len(set(grown.values())) > 1):
        size = max(grown.values())
        lacks = f"does not save {' and '.join(short)}" if short else "saves its tensors at several sizes"
        msg = (
            f"the adapter does not fit {base.source}: its vocabulary has another size, and it {lacks}; "
            f"model.resize_token_embeddings({size}) and save_pretrained write a base of that size"
        )
        raise MismatchError(msg)


def _is_head(name: str) -> bool:
    return not _HEADS.isdisjoint(name.split(".")[:-1])


def _is_resized(old: TensorInfo, shape: tuple[int, ...]) -> bool:
    is_other = shape != old.shape and shape[1:] == old.shape[1:] and len(shape) == len(old.shape)
    return is_other and is_vocabulary(old.name)


def _is_counter(old: TensorInfo, saved: TensorOutline) -> bool:
    """Whether the adapter replaces integers, such as a batch norm's number of batches."""
    return not old.dtype.is_floating_point and (old.dtype, old.shape) == (saved.dtype, saved.shape)


def _first_floating(base: Checkpoint) -> TensorInfo:
    return next(info for info in base.tensors.values() if info.dtype.is_floating_point)
