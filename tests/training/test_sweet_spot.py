"""The sweet spot of losses that were prescribed."""

import math
from statistics import fmean, stdev

import pytest
import torch

from eckart.training.sweet_spot import Setting, find_sweet_spot, student_t


def setting(params: int, *losses: float) -> Setting:
    return Setting(rank=params, target="attention", params=params, losses=dict(enumerate(losses)))


# What is common to the runs of one seed (its data order) falls out of every difference.
COMMON = (0.00, 0.03, -0.03, 0.01, -0.01)


def around(params: int, mean: float, wiggle: float = 0.001) -> Setting:
    signs = (1, -1, 1, -1, 0)
    return setting(params, *(mean + common + wiggle * sign for common, sign in zip(COMMON, signs, strict=True)))


@pytest.mark.parametrize(
    ("settings", "params", "decided"),
    [
        pytest.param([around(1, 2.6), around(2, 2.501), around(4, 2.5, 0)], 2, True, id="one smaller is as good"),
        pytest.param([around(1, 2.501), around(2, 2.502), around(4, 2.5, 0)], 1, True, id="all are as good"),
        pytest.param([around(1, 2.7), around(2, 2.6), around(4, 2.5, 0)], 4, True, id="only the best is"),
        pytest.param([around(1, 2.5, 0), around(2, 2.6), around(4, 2.7)], 1, True, id="the smallest is the best"),
        pytest.param([around(1, 2.52, 0.02), around(4, 2.5, -0.02)], 1, False, id="within, but not surely"),
        pytest.param([around(1, 2.54, 0.03), around(4, 2.5, -0.03)], 4, False, id="beyond, but not surely"),
    ],
)
def test_the_smallest_setting_within_the_scatter_of_a_run_is_chosen(settings, params, decided):
    spot = find_sweet_spot(settings)
    assert spot is not None
    assert (spot.setting.params, spot.decided) == (params, decided)
    assert spot.best.mean == min(entry.mean for entry in settings)
    assert (spot.more_seeds == 0) == decided
    assert spot.noise == pytest.approx(math.sqrt(fmean(stdev(entry.losses.values()) ** 2 for entry in settings)))


def test_the_probability_is_that_of_students_t_for_the_paired_differences():
    small, large = setting(1, 2.511, 2.532, 2.493), setting(4, 2.500, 2.530, 2.470)
    spot = find_sweet_spot([small, large])
    differences = [0.011, 0.002, 0.023]
    error = stdev(differences) / 3**0.5
    assert spot.difference == pytest.approx(fmean(differences))
    assert spot.difference_error == pytest.approx(error)
    assert spot.probability == pytest.approx(student_t((spot.noise - fmean(differences)) / error, 2))


def test_errors_about_several_smaller_settings_add_up():
    # Each lies surely enough beyond the noise by itself.
    doubtful = [setting(params, 2.540, 2.556, 2.524) for params in (1, 2, 3)]
    best = setting(9, 2.501, 2.521, 2.481)
    alone = find_sweet_spot([doubtful[0], best])
    together = find_sweet_spot([*doubtful, best])
    assert 0 < alone.probability < 1
    assert 1 - together.probability == pytest.approx(3 * (1 - alone.probability), rel=0.3)


def test_so_many_more_seeds_make_it_sure_if_the_numbers_stay():
    small, large = setting(1, 2.50, 2.511, 2.502), setting(4, 2.50, 2.51, 2.49)
    spot = find_sweet_spot([small, large])
    assert not spot.decided
    assert spot.more_seeds is not None
    differences = [small.losses[seed] - large.losses[seed] for seed in range(3)]

    def right(count):
        return student_t((spot.noise - fmean(differences)) / (stdev(differences) / count**0.5), count - 1)

    assert spot.setting is small
    assert right(3 + spot.more_seeds) >= 0.95 > right(3 + spot.more_seeds - 1)


def test_what_no_hundred_seeds_decide_has_no_number_of_seeds():
    spot = find_sweet_spot([setting(1, 2.51, 2.53), setting(4, 2.508, 2.5115)])
    assert spot.difference == 0 or spot.difference == pytest.approx(spot.noise, rel=0.02)
    assert spot.more_seeds is None
    assert not spot.decided


def test_one_seed_claims_no_spread_and_decides_nothing():
    spot = find_sweet_spot([setting(1, 2.51), setting(4, 2.50)])
    assert (spot.setting.params, spot.noise, spot.probability, spot.more_seeds) == (4, None, None, None)
    assert not spot.decided
    assert spot.setting.standard_error is None
    assert spot.to_json()["decided"] is False


def test_equal_losses_leave_no_doubt_and_nothing_leaves_no_choice():
    spot = find_sweet_spot([setting(1, 2.5, 2.5), setting(4, 2.5, 2.5)])
    assert (spot.setting.params, spot.noise, spot.probability) == (1, 0.0, 1.0)
    assert find_sweet_spot([]) is None


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29])
@pytest.mark.parametrize("value", [-6.0, -1.3, 0.0, 0.4, 2.0, 12.0])
def test_students_distribution_is_the_integral_of_its_density(freedom, value):
    # x = tan(u) brings the whole line into an interval.
    upper = math.atan(value)
    u = torch.linspace(-math.pi / 2 + 1e-9, upper, 400_001, dtype=torch.float64)
    density = torch.distributions.StudentT(torch.tensor(float(freedom), dtype=torch.float64)).log_prob(u.tan()).exp()
    integral = torch.trapezoid(density / u.cos().square(), u)
    assert student_t(value, freedom) == pytest.approx(float(integral), abs=1e-8)
