"""Lab 2 tells what the lesson promises: one rank in three ways, the mistakes, and what noise does to the answer."""

import pytest

LESSON = {
    "smallest rank, by trying": "570",
    "smallest rank, by tail sums": "570",
    "rank below 1% error, from 576 singular values": "570",
    "smallest rank, by eckart": "570",
    "the rank that counting from one gives": "571",
    "share of the noise in the norm": "0.07957",
    "signal rank that eckart finds": "64",
    "rank for 1 %, true rank 16": "265",
    "rank for 1 %, true rank 64": "454",
    "rank for 1 %, true rank 128": "527",
    "rank for 1 %, random": "731",
    "rank for 95% of the energy, rank 10": "10",
    "rank for 99% of the energy, rank 10": "10",
    "rank for 95% of the energy, smooth": "2",
    "rank for 99% of the energy, smooth": "2",
    "rank for 95% of the energy, random": "157",
    "rank for 99% of the energy, random": "198",
    "rank for 95% of the energy, identity + 0.1·noise": "160",
    "rank for 99% of the energy, identity + 0.1·noise": "200",
    "rank for 95 % of the variance": "15",
    "zero-based index, mistaken for the rank": "14",
    "error of the random matrix at rank 4": "0.985",
    "error of the random matrix at rank 256": "0.3254",
    "SVD factors with 90 % of the parameters break the model": "yes",
    "the rank-2 update keeps much of the gain": "yes",
}


@pytest.mark.parametrize("name", LESSON)
def test_the_lab_computes_what_the_lesson_says(run_lab, name):
    assert run_lab("lab2_which_rank").numbers[name] == LESSON[name]
