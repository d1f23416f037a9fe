import itertools
import math

import numpy as np
import pytest

from nanochat_hf.evals.items import digest_of, pack, unpack
from nanochat_hf.evals.metrics.formulas import (
    bits_per_byte_interval,
    difference_with_test,
    mean_centered_interval,
    pass_at_k,
    sign_test,
    wilson_interval,
)


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


def test_the_sign_test_is_that_of_the_binomial_distribution():
    stats = pytest.importorskip("scipy.stats")
    for above, below in ((25, 9), (1, 0), (3, 3), (0, 12), (7, 40)):
        expected = stats.binomtest(above, above + below).pvalue
        assert sign_test([0.5] * above + [-1] * below + [0.0] * 50) == pytest.approx(expected)
    assert sign_test([]) == sign_test([0.0, 0.0]) == 1.0


def test_paired_differences_are_sharper_than_two_intervals():
    scores = [float(index % 2) for index in range(400)]
    better = [1.0 if index % 20 == 0 else score for index, score in enumerate(scores)]
    found = difference_with_test(scores, better)
    assert found["difference"] == pytest.approx(0.05) and 0.02 < found["low"] < 0.05 < found["high"] < 0.08
    assert found["p"] == pytest.approx(2 / 2**20)
    assert wilson_interval(200, 400)[1] > wilson_interval(220, 400)[0], "the two intervals overlap"


def test_the_interval_of_bits_per_byte_is_that_of_a_bootstrap_over_documents():
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 2000, 300)
    nats = sizes * rng.normal(0.7, 0.15, 300)
    low, high = bits_per_byte_interval(nats, sizes)
    drawn = rng.integers(0, 300, (4000, 300))
    values = nats[drawn].sum(1) / sizes[drawn].sum(1) / math.log(2)
    assert [low, high] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.003)
    assert low < nats.sum() / sizes.sum() / math.log(2) < high
    assert bits_per_byte_interval([1.0], [2]) == (-math.inf, math.inf)


def test_packed_scores_and_digests():
    scores = [1.0, 0.0, 0.125, 1234.56789]
    assert unpack(pack(scores)) == pytest.approx(scores) and pack(scores[:3]) == "1 0 0.125" and unpack("") == []
    items = [{"q": "a"}, {"q": "b"}, {"q": "c"}]
    whole = digest_of(enumerate(items))
    assert whole == digest_of([(0, items[0]), (2, items[2])]) + digest_of([(1, items[1])]), "processes add up"
    assert whole != digest_of(enumerate(items[::-1])) and whole != digest_of(enumerate(items[:2]))
