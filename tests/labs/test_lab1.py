"""Lab 1 tells what the lesson promises: ranks, thin factors, what is kept at each rank."""

import pytest

LESSON = {
    "rank where no row follows from others": "3",
    "rank where last row = first + second": "2",
    "rank where all rows multiples of one": "1",
    "numerical rank of the 10×10 matrix": "2",
    "numbers in W": "100",
    "numbers in B and A": "40",
    "numbers in the whole update": "100,000,000",
    "numbers in its two factors": "80,000",
    "rank for 95 % of the energy of the smooth matrix": "2",
    "rank for 99 % of the energy of the smooth matrix": "2",
    "error at rank 64": "0.07293",
}


@pytest.mark.parametrize("name", LESSON)
def test_the_lab_computes_what_the_lesson_says(run_lab, name):
    assert run_lab("lab1_what_svd_sees").numbers[name] == LESSON[name]


@pytest.mark.parametrize("picture", ["[picture] The unit circle", "[picture] A matrix, its best approximation"])
def test_the_lab_shows_both_pictures_that_move(run_lab, picture):
    assert picture in run_lab("lab1_what_svd_sees").output
