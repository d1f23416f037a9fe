import itertools

import numpy as np
import pytest

from nanochat_hf.evals.metrics.formulas import mean_centered_interval, pass_at_k, wilson_interval


def test_wilson_interval_published_value():
    """Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662."""
    low, high = wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_pass_at_k_equals_counting_all_subsets():
    outcomes = [1, 0, 0, 1, 0, 0, 0]
    for k in range(1, 8):
        subsets = list(itertools.combinations(outcomes, k))
        assert pass_at_k(7, 2, k) == pytest.approx(np.mean([max(subset) for subset in subsets]))
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)


def test_bootstrap_interval_has_the_width_of_the_normal_approximation():
    outcomes = [[1.0] * 60 + [0.0] * 40, [1.0] * 100 + [0.0] * 300]
    low, high = mean_centered_interval(outcomes, [0.5, 0.0], draws=20000)
    # Centred means 0.2 and 0.25; the first task's error is doubled by its baseline of one half.
    spread = 1.96 * np.sqrt(0.6 * 0.4 / 100 * 4 + 0.25 * 0.75 / 400) / 2
    assert low == pytest.approx(0.225 - spread, abs=0.005)
    assert high == pytest.approx(0.225 + spread, abs=0.005)
