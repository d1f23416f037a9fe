"""Scores with their uncertainty: every accuracy is reported with a 95 % interval.

Seven runs of one recipe of nanochat differ by up to 0.0165 in CORE (its dev/LEADERBOARD.md), so a difference without
an interval says little.
"""

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959964


def wilson_interval(successes: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927). It holds for few items and for shares near 0 and 1.

    Args:
        successes: number of correct items; fractions count where an item's score is a mean over samples.
        count: number of items.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        Lower and upper end, both within 0 and 1. Without items: (0, 1).
    """
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def centered(accuracy: float, baseline: float) -> float:
    """Rescales an accuracy so that chance is 0 and a perfect score is 1. Both arguments lie in 0 to 1."""
    return (accuracy - baseline) / (1.0 - baseline)


def bootstrap_macro_mean(
    outcomes: Sequence[Sequence[float]], baselines: Sequence[float], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a mean of centered accuracies, such as CORE and ChatCORE.

    Items are resampled within each task; the set of tasks stays. So the interval covers other items of the same kind.
    It does not cover other tasks or another training run.

    Args:
        outcomes: per task, the score of each item.
        baselines: per task, chance accuracy.
        draws: number of resamples.
        seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(draws)
    for scores, baseline in zip(outcomes, baselines, strict=True):
        scores = np.asarray(scores, dtype=np.float64)
        values, counts = np.unique(scores, return_counts=True)
        # Drawing n items with replacement is a multinomial draw over the distinct scores: the same law, less work.
        resampled = generator.multinomial(len(scores), counts / len(scores), size=draws) @ values / len(scores)
        total += centered(resampled, baseline)
    low, high = np.percentile(total / len(outcomes), [2.5, 97.5])
    return float(low), float(high)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k samples is correct, estimated without bias (Chen et al., arXiv:2107.03374).

    Args:
        num_samples: samples drawn for the problem.
        num_correct: how many of them are correct.
        k: between 1 and `num_samples`.

    Raises:
        ValueError: k is out of this range.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {num_samples}")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
