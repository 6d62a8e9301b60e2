"""The split of Python's language reference."""

import re

import pytest

from eckart.demo.corpus import language_reference, split_topics


def test_the_split_is_the_same_every_time_and_another_with_another_seed():
    assert language_reference() == language_reference()
    assert language_reference().held_out.keys() != language_reference(seed=1).held_out.keys()


def test_every_topic_is_on_exactly_one_side():
    from pydoc_data.topics import topics

    corpus = language_reference()
    assert not corpus.training.keys() & corpus.held_out.keys()
    assert {**corpus.training, **corpus.held_out} == topics


@pytest.mark.parametrize("seed", range(5))
def test_about_eight_percent_of_the_text_is_held_out(seed):
    corpus = language_reference(seed=seed)
    held = sum(map(len, corpus.held_out.values()))
    assert 0.07 < held / (held + sum(map(len, corpus.training.values()))) <= 0.08


@pytest.mark.parametrize("seed", range(5))
def test_no_paragraph_is_on_both_sides(seed):
    def paragraphs(texts):
        flowed = (" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text))
        return {part for part in flowed if len(part) >= 80}

    corpus = language_reference(seed=seed)
    assert not paragraphs(corpus.training.values()) & paragraphs(corpus.held_out.values())


def test_a_new_topic_does_not_move_the_others():
    topics = {str(n): f"paragraph number {n} " * 20 for n in range(50)}
    before = split_topics(topics, held_out_share=0.2, seed=0).held_out.keys()
    after = split_topics(topics | {"new": "nothing"}, held_out_share=0.2, seed=0).held_out.keys()
    assert before <= after


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_that_leaves_a_side_empty_is_refused(share):
    with pytest.raises(ValueError, match="held_out_share"):
        language_reference(held_out_share=share)
