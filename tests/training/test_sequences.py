"""Texts packed into training sequences."""

import pytest
import torch

from eckart.errors import EckartError
from eckart.training import pack_texts
from eckart.training.sequences import shuffled_batches


class Letters:
    """A tokenizer that gives a token to every character."""

    eos_token_id = 0

    def __call__(self, text, **_):
        return {"input_ids": [ord(character) for character in text]}


def test_texts_are_joined_by_the_end_token_and_cut_into_equal_sequences():
    packed = pack_texts(["abc", "de"], Letters(), length=3)
    assert packed.tolist() == [[97, 98, 99], [0, 100, 101]]


def test_text_shorter_than_a_sequence_is_refused():
    with pytest.raises(EckartError, match="has 3 tokens, less than one sequence of 4"):
        pack_texts(["ab"], Letters(), length=4)


def test_every_sequence_comes_once_before_any_comes_again():
    batches = shuffled_batches(torch.arange(10)[:, None], 4, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(batches) for _ in range(5)]).flatten().tolist()
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_a_batch_larger_than_the_data_is_filled_by_coming_again():
    batches = shuffled_batches(torch.arange(2)[:, None], 5, torch.Generator().manual_seed(0))
    assert next(batches).shape == (5, 1)
