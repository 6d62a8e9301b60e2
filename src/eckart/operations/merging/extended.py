"""A base with tensors that only an adapter has: those of a new vocabulary, and the head of another task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart.checkpoint.checkpoint import Checkpoint, TensorInfo, check_rows
from eckart.checkpoint.nf4 import Nf4Checkpoint
from eckart.checkpoint.tying import is_vocabulary, tied_weights
from eckart.errors import MismatchError
from eckart.operations.placement import NamesOfBase

if TYPE_CHECKING:
    from torch import Tensor

    from eckart.adapter.adapter import Adapter

_HEADS = {"score", "classifier", "qa_outputs", "pre_classifier", "classification_head"}
_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}


@dataclass(frozen=True)
class _Supplied:
    """A tensor that an adapter saves.

    Attributes:
        adapter: the adapter.
        key: its name there.
        info: header of the tensor as part of the base.
    """

    adapter: Adapter
    key: str
    info: TensorInfo


class ExtendedBase:
    """A checkpoint with some tensors of adapters in place of its own, or in addition to them: see `Checkpoint`."""

    def __init__(self, base: Checkpoint, supplied: Mapping[str, _Supplied]) -> None:
        self.source, self.folder, self.files = base.source, base.folder, base.files
        self.kinds: Mapping[str, str] = base.kinds
        self.base, self.supplied = base, supplied
        self.tensors: Mapping[str, TensorInfo] = {
            **base.tensors,
            **{name: item.info for name, item in supplied.items()},
        }
        self.config = _extended_config(self)
        self.tied: Mapping[str, str] = {**base.tied, **tied_weights(self.tensors, self.config)}
        self._read = lru_cache(maxsize=1)(self._read_supplied)

    @property
    def tokenizer(self) -> Path | None:
        """The folder with the tokenizer of the new vocabulary, if there is one."""
        grown = [item for name, item in self.supplied.items() if name in self.base.tensors and item.adapter.files]
        return grown[0].adapter.files[0].parent if grown else None

    def read(self, name: str) -> Tensor:
        """The complete tensor."""
        return self._read(name) if name in self.supplied else self.base.read(name)

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor of the base."""
        return self.base.read_bytes(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Entries `start` to `stop` of the first dimension."""
        if name not in self.supplied:
            return self.base.rows(name, start, stop)
        check_rows(self.tensors[name], start, stop)
        return self._read(name)[start:stop]

    def fingerprint(self) -> str:
        """A hex digest that changes when any file of the base changes."""
        return self.base.fingerprint()

    def _read_supplied(self, name: str) -> Tensor:
        item = self.supplied[name]
        return item.adapter.modules_to_save[item.key].detach().cpu().to(item.info.dtype.torch)


def extended(base: Checkpoint, adapters: Sequence[Adapter], weights: Sequence[float]) -> Checkpoint:
    """The base, with what an adapter saves for a vocabulary of another size, or as a head that the base lacks.

    Raises:
        MismatchError: tensors of a new vocabulary are missing, several adapters bring them, or a weight is not 1.
    """
    if isinstance(base, Nf4Checkpoint):
        return base
    names, supplied, faults = NamesOfBase([*base.tensors, *base.tied], base), {}, []
    for adapter, weight in zip(adapters, weights, strict=True):
        for key, saved in adapter.outline().modules_to_save.items() if weight else ():
            name = None if _is_head(key) and key not in names.names else names.find(key)
            stored = base.tied.get(name, name) if name else None
            old = base.tensors[stored] if stored else None
            if old is None and not _is_head(key):
                continue
            if old is not None and (old.shape == saved.shape or not _is_resized(old, saved.shape)):
                continue
            like = old or _first_floating(base)
            target = stored or key
            if weight != 1:
                faults.append(f"{key}: the base has no tensor of this shape to mix it with, so its weight must be 1")
            elif target in supplied and supplied[target].adapter is not adapter:
                faults.append(f"{key}: several adapters bring a tensor that the base has not; merge one of them")
            info = replace(like, name=target, shape=saved.shape, nbytes=saved.numel() * like.dtype.itemsize)
            supplied.setdefault(target, _Supplied(adapter, key, info))
    if faults:
        msg = f"the adapters do not fit {base.source}"
        raise MismatchError.listing(msg, faults)
    if not supplied:
        return base
    result = ExtendedBase(base, supplied)
    _check_vocabulary(result)
    return result


def _extended_config(base: ExtendedBase) -> dict[str, Any]:
    """The base's config with the sizes, and the class, of the supplied tensors."""
    result = dict(base.base.config)
    if not result:
        return result
    for name, item in base.supplied.items():
        if old := base.base.tensors.get(name):
            result = _with_vocabulary(result, old.shape[0], item.info.shape[0])
            continue
        ending = _CLASSES.get(item.adapter.task_type or "")
        if ending and isinstance(result.get("architectures"), list):
            classes = [re.sub(r"(LMHeadModel|Model|For[A-Z]\w+)$", ending, str(cls)) for cls in result["architectures"]]
            result["architectures"] = classes
        labels = item.info.shape[0]
        if len(item.info.shape) == 2 and ending in ("ForSequenceClassification", "ForTokenClassification"):
            # The last of a head's matrices has a row for each label.
            result |= {"id2label": {str(i): f"LABEL_{i}" for i in range(labels)}}
            result |= {"label2id": {f"LABEL_{i}": i for i in range(labels)}}
    return result


def _with_vocabulary(config: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    changed: dict[str, Any] = {
        key: _with_vocabulary(value, old, new) for key, value in config.items() if isinstance(value, dict)
    }
    if config.get("vocab_size") == old:
        changed["vocab_size"] = new
    return config | changed


def _check_vocabulary(base: ExtendedBase) -> None:
    """Refuse a new vocabulary that only some of the embeddings and output layers have."""
    grown = {name: item.info.shape[0] for name, item in base.supplied.items() if name in base.base.tensors}
    rows = {name: info.shape[0] for name, info in base.tensors.items() if info.shape and is_vocabulary(name)}
    sizes = {base.base.tensors[name].shape[0] for name in grown}
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
    return is_vocabulary(old.name) and len(shape) == len(old.shape) and shape[1:] == old.shape[1:]


def _first_floating(base: Checkpoint) -> TensorInfo:
    return next(info for info in base.tensors.values() if info.dtype.is_floating_point)
