"""Scores with their uncertainty: no number leaves an evaluation without an interval beside it.

nanochat's seven runs of one recipe spread over 0.0165 of CORE (its dev/LEADERBOARD.md), so a difference without an
interval says little.
"""

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959964


def wilson_interval(successes: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927): sound for few items and for shares near 0 and 1."""
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def centered(accuracy: float, baseline: float) -> float:
    """Rescales an accuracy so that chance is 0 and perfection 1."""
    return (accuracy - baseline) / (1.0 - baseline)


def bootstrap_macro_mean(
    outcomes: Sequence[Sequence[float]], baselines: Sequence[float], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of centred accuracies, such as CORE and ChatCORE.

    Resamples the items within each task and leaves the set of tasks as it is: the interval answers "other items of the
    same kind", not "other tasks" and not "another training run".

    Args:
        outcomes: per task, the score of each item.
        baselines: per task, chance accuracy.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(draws)
    for scores, baseline in zip(outcomes, baselines, strict=True):
        scores = np.asarray(scores, dtype=np.float64)
        values, counts = np.unique(scores, return_counts=True)
        # Drawing n items with replacement is a multinomial draw over the distinct scores: the same law, in O(draws).
        resampled = generator.multinomial(len(scores), counts / len(scores), size=draws) @ values / len(scores)
        total += centered(resampled, baseline)
    low, high = np.percentile(total / len(outcomes), [2.5, 97.5])
    return float(low), float(high)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The unbiased estimate of "one of k samples is right" from n samples (Chen et al. 2021, arXiv:2107.03374).

    Taking the best of the k samples at hand instead would depend on which k were drawn.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, got {num_samples}")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
