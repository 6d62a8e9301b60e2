"""The text of the demo: Python's own language reference, which every Python carries as `pydoc_data.topics`.

Nothing is downloaded. The reference repeats itself (the topic "if" is part of "compound"), so topics that share a
paragraph are on the same side of the split: no held-out paragraph is in the training text.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from eckart.errors import OptionError

HELD_OUT_SHARE = 0.08
_SHARED_PARAGRAPH_CHARS = 80  # shorter paragraphs ("Changed in version 3.8") recur everywhere


@dataclass(frozen=True)
class Corpus:
    """Topics by name in alphabetical order: those to train on and the held-out ones."""

    training: Mapping[str, str]
    held_out: Mapping[str, str]


def language_reference(*, held_out_share: float = HELD_OUT_SHARE, seed: int = 0) -> Corpus:
    """Split the Python language reference into topics to train on and topics to measure with.

    Args:
        held_out_share: largest share of the characters, between 0 and 1, in the held-out topics.
        seed: seed of the choice of held-out topics.

    Returns:
        The corpus; topics are never split, and no paragraph is on both sides.

    Raises:
        OptionError: `held_out_share` is not between 0 and 1.
    """
    from pydoc_data.topics import topics

    return split_topics(topics, held_out_share=held_out_share, seed=seed)


def split_topics(topics: Mapping[str, str], *, held_out_share: float, seed: int) -> Corpus:
    """Hold out groups of related topics, as many as fit into `held_out_share` of the characters."""
    if not 0 < held_out_share < 1:
        msg = f"`held_out_share` must be between 0 and 1, got {held_out_share}"
        raise OptionError(msg)
    room = held_out_share * sum(map(len, topics.values()))
    held_out: set[str] = set()
    for group in sorted(_related(topics), key=lambda group: _hash(group[0], seed)):
        size = sum(len(topics[name]) for name in group)
        if size <= room:
            held_out.update(group)
            room -= size
    return Corpus(
        training={name: topics[name] for name in sorted(topics) if name not in held_out},
        held_out={name: topics[name] for name in sorted(held_out)},
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
                paragraphs.union(*(others for others, _ in linked)),
                sorted([name, *(other for _, names in linked for other in names)]),
            )
        )
    return [names for _, names in groups]


def _paragraphs(text: str) -> set[str]:
    joined = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return {paragraph for paragraph in joined if len(paragraph) >= _SHARED_PARAGRAPH_CHARS}


def _hash(name: str, seed: int) -> bytes:
    """A random order that depends on each name alone, so that new topics in another Python do not change the rest."""
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
