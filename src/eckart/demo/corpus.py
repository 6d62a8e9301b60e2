"""The text of the demo: Python's own language reference, which every Python carries as `pydoc_data.topics`.

Nothing is downloaded. The reference repeats itself (the topic "if" is a part of "compound"), so topics that
share a paragraph go to the same side of the split: no held-out paragraph has been trained on.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

HELD_OUT_SHARE = 0.08
_SHARED_PARAGRAPH_CHARS = 80  # shorter paragraphs ("Changed in version 3.8") recur without telling anything


@dataclass(frozen=True)
class Corpus:
    """Topics by name, those to train on and those kept aside for measuring, in alphabetical order."""

    training: Mapping[str, str]
    held_out: Mapping[str, str]


def language_reference(*, held_out_share: float = HELD_OUT_SHARE, seed: int = 0) -> Corpus:
    """Split the Python language reference into topics to train on and topics to measure with.

    Args:
        held_out_share: part of the characters, between 0 and 1, that the held-out topics may reach.
        seed: another seed holds out other topics; the same one always the same.

    Returns:
        The corpus; whole topics on either side, and none that share a paragraph across it.

    Raises:
        ValueError: `held_out_share` is not between 0 and 1.
    """
    from pydoc_data.topics import topics

    return split_topics(topics, held_out_share=held_out_share, seed=seed)


def split_topics(topics: Mapping[str, str], *, held_out_share: float, seed: int) -> Corpus:
    """Hold out whole groups of related topics, as many as fit in `held_out_share` of the characters."""
    if not 0 < held_out_share < 1:
        msg = f"held_out_share must lie between 0 and 1, got {held_out_share}"
        raise ValueError(msg)
    room = held_out_share * sum(map(len, topics.values()))
    held: set[str] = set()
    for group in sorted(_related(topics), key=lambda group: _lot(group[0], seed)):
        size = sum(len(topics[name]) for name in group)
        if size <= room:
            held.update(group)
            room -= size
    return Corpus(
        training={name: topics[name] for name in sorted(topics) if name not in held},
        held_out={name: topics[name] for name in sorted(held)},
    )


def _related(topics: Mapping[str, str]) -> list[list[str]]:
    """Groups of topics linked by a common paragraph, each sorted by name."""
    groups: list[tuple[set[str], list[str]]] = []
    for name in sorted(topics):
        paragraphs = _paragraphs(topics[name])
        linked = [group for group in groups if group[0] & paragraphs]
        groups = [group for group in groups if not group[0] & paragraphs]
        groups.append(
            (
                paragraphs.union(*(known for known, _ in linked)),
                sorted([name, *(other for _, names in linked for other in names)]),
            )
        )
    return [names for _, names in groups]


def _paragraphs(text: str) -> set[str]:
    flowed = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return {paragraph for paragraph in flowed if len(paragraph) >= _SHARED_PARAGRAPH_CHARS}


def _lot(name: str, seed: int) -> bytes:
    """A draw from the name alone, so that the extra topics of another Python do not reshuffle the rest."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
