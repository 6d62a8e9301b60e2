"""Plain texts as training sequences: joined, split into windows, with the end of every text held out."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from eckart.errors import FileFormatError, SourceError
from eckart.evaluation.model import opening_token, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE_BYTES = 2**16  # read and tokenized at a time


def windows(
    paths: Sequence[Path],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    length: int,
    held_out: dict[Path, int],
    split: str,
) -> Iterator[list[int]]:
    """Sequences of at most `length` tokens from texts that the end-of-text token separates; none is padded.

    Args:
        paths: texts, in the order in which they are joined.
        tokenizer: if it starts texts with a start token, every window starts with it.
        length: tokens per window; the last one may be shorter, but has at least two.
        held_out: number of bytes at the end of each text that are held out.
        split: what to read, `train` or `held_out`.

    Raises:
        SourceError, FileFormatError: a file cannot be read, or is not UTF-8 text.
    """
    opening = opening_token(tokenizer)
    ids = itertools.chain.from_iterable(_document(pieces(path, held_out[path], split), tokenizer) for path in paths)
    while window := list(itertools.islice(ids, length - len(opening))):
        if len(window) + len(opening) > 1:
            yield [*opening, *window]


def held_out_bytes(paths: Iterable[Path], share: float, most_bytes: int) -> dict[Path, int]:
    """The bytes to hold out at the end of each text: `share` of it, but at most `most_bytes` of all texts together."""
    sizes = {path: path.stat().st_size for path in paths}
    share = min(share, most_bytes / max(1, sum(sizes.values())))
    return {path: int(size * share) for path, size in sizes.items()}


def pieces(path: Path, held_out: int, split: str) -> Iterator[str]:
    """The text of a file, or of its held-out end, in pieces that end with a line if possible.

    Raises:
        SourceError, FileFormatError: the file cannot be read, or is not UTF-8 text.
    """
    limit = path.stat().st_size - held_out
    offset, line = 0, 1
    try:
        with path.open("rb") as file:
            rest = b""
            while block := rest + file.read(PIECE_BYTES):
                is_last = len(block) < PIECE_BYTES
                size = len(block) if is_last else _split_point(block, len(block))
                if offset < limit < offset + size:
                    size = _split_point(block, limit - offset)
                    limit = offset + size
                piece, rest = block[:size], block[size:]
                if (offset < limit) == (split == "train"):
                    yield _decoded(piece, path, line)
                offset += size
                line += piece.count(b"\n")
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise SourceError(msg) from None


def _document(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> Iterator[int]:
    empty = True
    for text in texts:
        ids = token_ids(text, tokenizer)
        empty = empty and not ids
        yield from ids
    if not empty and tokenizer.eos_token_id is not None:
        yield cast("int", tokenizer.eos_token_id)


def _split_point(block: bytes, limit: int) -> int:
    """Where to split at or before `limit`: after a line, else after a blank, else between two characters."""
    for mark in (b"\n", b" "):
        if (index := block.rfind(mark, 0, limit)) > 0:
            return index + 1
    limit = min(limit, len(block) - 1)
    while limit > 0 and block[limit] & 0xC0 == 0x80:  # inside a character
        limit -= 1
    return limit or len(block)


def _decoded(piece: bytes, path: Path, line: int) -> str:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError as error:
        line += piece[: error.start].count(b"\n")
        msg = f"{path}: not UTF-8 text (line {line}); expected texts, or records in JSONL, JSON or Parquet"
        raise FileFormatError(msg) from None
