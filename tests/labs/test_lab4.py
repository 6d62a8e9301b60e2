"""Lab 4 tells what the lesson promises: what cannot be learned and why, and a rank that is enough and not less."""

import pytest

LESSON = {
    "loss of answering zero": "0.8219",
    "the same by the formula": "0.7939",
    "‖B‖ before the first step": "0",
    "numerical rank of the update to be found": "16",
    "parameters at rank 16": "8,192",
    "sweet spot": "16",
    "parameters of rank 8 on v and o": "8,192",
}


@pytest.mark.parametrize("name", LESSON)
def test_the_lab_computes_what_the_lesson_says(run_lab, name):
    assert run_lab("lab4_watching_it_learn").numbers[name] == LESSON[name]


def test_a_block_without_positions_stays_at_the_floor_and_one_with_them_learns(run_lab):
    numbers = run_lab("lab4_watching_it_learn").numbers
    assert float(numbers["lowest loss of the blind block on unseen samples"]) > 0.79
    assert float(numbers["loss after full training with positions"]) < 0.12


def test_the_task_is_learned_at_its_rank_and_not_below(run_lab):
    numbers = run_lab("lab4_watching_it_learn").numbers
    assert float(numbers["loss at rank 8"]) > 10 * float(numbers["loss at rank 16"])


def test_the_lab_shows_the_update_grow(run_lab):
    assert "[picture] The update after each epoch" in run_lab("lab4_watching_it_learn").output
