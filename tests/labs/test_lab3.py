"""Lab 3 tells what the lesson promises: counts of what trains, exact starts, and the mistakes that fail."""

import pytest

LESSON = {
    "outputs that differ from the base at the start": "0",
    "outputs of the torch layer that differ at the start": "0",
    "numbers in a 4096×4096 weight": "16,777,216",
    "numbers that train at rank 16": "131,072",
    "fewer, in percent": "99.22",
    "numbers in a 768×768 weight": "589,824",
    "numbers of its adapter at rank 16": "24,576",
    "fewer for 768×768, in percent": "95.83",
    "numbers in the block with adapters": "805,120",
    "numbers that train where only targets were wrapped": "542,976",
    "numbers that train where the block was frozen first": "16,384",
    "numbers that train by eckart.inject": "16,384",
    "numbers changed by eckart.inject": "0",
    "weights not restored by eckart": "0",
    "numbers that train on q and v at rank 4": "4,096",
    "numbers that train on q and v at rank 8": "8,192",
    "numbers that train on q and v at rank 16": "16,384",
    "numbers that train on q and v at rank 32": "32,768",
}
MISTAKES = [
    "loss of the other on the original base, of the base's",
    "α = 1: steps until 1 % is left",
    "loss at the start with a random B, of the base's",
]


@pytest.mark.parametrize("name", LESSON)
def test_the_lab_computes_what_the_lesson_says(run_lab, name):
    assert run_lab("lab3_a_lora_layer").numbers[name] == LESSON[name]


@pytest.mark.parametrize("name", MISTAKES)
def test_the_lab_shows_each_classic_mistake_failing(run_lab, name):
    assert name in run_lab("lab3_a_lora_layer").numbers
