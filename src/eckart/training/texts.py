"""Plain texts as training sequences: tokens end to end, cut into windows, with the end of every text held out."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from eckart.errors import FileFormatError, SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE_BYTES = 2**16  # read and tokenised at once


def windows(
    paths: Sequence[Path],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    length: int,
    held_out: dict[Path, int],
    part: str,
) -> Iterator[list[int]]:
    """Sequences of at most `length` tokens from texts, parted by the end-of-text token; none is padded.

    Args:
        paths: texts, in the order in which they are joined.
        tokenizer: where it opens texts with a token of its own, that token opens every window.
        length: tokens of a window; the last one may be shorter, but has at least two.
        held_out: bytes at the end of each text that belong to the part `held_out`; the others are `train`.
        part: which of the two to read.

    Raises:
        SourceError, FileFormatError: a file cannot be read, or is not UTF-8 text.
    """
    opening = [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]
    ids = itertools.chain.from_iterable(_document(pieces(path, held_out[path], part), tokenizer) for path in paths)
    while window := list(itertools.islice(ids, length - len(opening))):
        if len(window) + len(opening) > 1:
            yield [*opening, *window]


def held_out_bytes(paths: Iterable[Path], share: float, most_bytes: int) -> dict[Path, int]:
    """The bytes to hold out at the end of each text: `share` of it, and together no more than `most_bytes`."""
    sizes = {path: path.stat().st_size for path in paths}
    share = min(share, most_bytes / max(1, sum(sizes.values())))
    return {path: int(size * share) for path, size in sizes.items()}


def pieces(path: Path, held_out: int, part: str) -> Iterator[str]:
    """The text of a file, or of its held-out end, in pieces that end where a line does if one does there.

    Raises:
        SourceError, FileFormatError: the file cannot be read, or is not UTF-8 text.
    """
    limit = path.stat().st_size - held_out
    offset, line = 0, 1
    try:
        with path.open("rb") as file:
            rest = b""
            while block := rest + file.read(PIECE_BYTES):
                whole = len(block) < PIECE_BYTES
                size = len(block) if whole else _cut(block, len(block))
                if offset < limit < offset + size:
                    size = _cut(block, limit - offset)
                    limit = offset + size
                piece, rest = block[:size], block[size:]
                if (offset < limit) == (part == "train"):
                    yield _decoded(piece, path, line)
                offset += size
                line += piece.count(b"\n")
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise SourceError(msg) from None


def _document(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> Iterator[int]:
    empty = True
    for text in texts:
        # verbose=False: a text longer than the model's window is meant to be cut here, not warned about.
        ids = cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        empty = empty and not ids
        yield from ids
    if not empty and tokenizer.eos_token_id is not None:
        yield cast("int", tokenizer.eos_token_id)


def _cut(block: bytes, limit: int) -> int:
    """Where to end a piece at or before `limit`: after a line, else after a blank, else between two characters."""
    for mark in (b"\n", b" "):
        if (place := block.rfind(mark, 0, limit)) > 0:
            return place + 1
    limit = min(limit, len(block) - 1)
    while limit > 0 and block[limit] & 0xC0 == 0x80:  # the inside of a character
        limit -= 1
    return limit or len(block)


def _decoded(piece: bytes, path: Path, line: int) -> str:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError as error:
        line += piece[: error.start].count(b"\n")
        msg = f"{path}: not UTF-8 text (line {line}); expected texts, or records in JSONL, JSON or Parquet"
        raise FileFormatError(msg) from None
