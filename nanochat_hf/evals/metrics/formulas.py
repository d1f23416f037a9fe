"""The formulas of the metrics, each computed here and nowhere else.

Every score has a 95 % interval. Seven runs of one recipe of nanochat differ by up to 0.0165 in CORE (its
dev/LEADERBOARD.md), so a difference without an interval says little.
"""

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959964


def bits_per_byte(nats: float, num_bytes: float) -> float:
    """Loss in bits per byte of text; infinity where there is no byte.

    Args:
        nats: sum of -ln p over the tokens.
        num_bytes: UTF-8 bytes of the same tokens.
    """
    return nats / (math.log(2) * num_bytes) if num_bytes else math.inf


def bits_per_byte_interval(nats: Sequence[float], num_bytes: Sequence[float]) -> tuple[float, float]:
    """95 % interval of bits per byte, from the spread between documents (the ratio's linearized variance).

    With the differences of two models' nats it is the interval of the difference of their bits per byte.

    Args:
        nats: per document, the sum of -ln p.
        num_bytes: per document, its UTF-8 bytes.

    Returns:
        Lower and upper end. Infinite ends for fewer than two documents, which have no spread.
    """
    loss, size = np.asarray(nats, dtype=np.float64), np.asarray(num_bytes, dtype=np.float64)
    count = len(loss)
    if count < 2:
        return -math.inf, math.inf
    value = loss.sum() / size.sum()
    error = math.sqrt(count / (count - 1) * np.square(loss - value * size).sum()) / size.sum()
    return tuple(float(value + side * Z_95 * error) / math.log(2) for side in (-1, 1))  # type: ignore[return-value]


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)


def centered(accuracy: float, baseline: float) -> float:
    """Rescales an accuracy so that chance is 0 and a perfect score is 1. Both arguments lie in 0 to 1."""
    return (accuracy - baseline) / (1.0 - baseline)


def mean_centered(accuracies: Sequence[float], baselines: Sequence[float]) -> float:
    """Mean centered accuracy over tasks: CORE (arXiv:2406.11794, section 3.5) and ChatCORE.

    Args:
        accuracies: of each task, 0 to 1.
        baselines: chance accuracy of each task.
    """
    return mean([centered(accuracy, baseline) for accuracy, baseline in zip(accuracies, baselines, strict=True)])


def mean_centered_interval(
    scores: Sequence[Sequence[float]], baselines: Sequence[float], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a mean centered accuracy, by a bootstrap over the items of each task.

    The set of tasks stays. So the interval covers other items of the same kind. It does not cover other tasks or
    another training run.

    Args:
        scores: per task, the score of each item.
        baselines: per task, chance accuracy.
        draws: number of resamples.
        seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(draws)
    for items, baseline in zip(scores, baselines, strict=True):
        items = np.asarray(items, dtype=np.float64)
        values, counts = np.unique(items, return_counts=True)
        # Drawing n items with replacement is a multinomial draw over the distinct scores: the same law, less work.
        resampled = generator.multinomial(len(items), counts / len(items), size=draws) @ values / len(items)
        total += centered(resampled, baseline)
    low, high = np.percentile(total / len(scores), [2.5, 97.5])
    return float(low), float(high)


def mean_centered_of_items(
    name: str, scores: Sequence[Sequence[float]], baselines: Sequence[float]
) -> dict[str, float]:
    """The mean centered accuracy of tasks from the scores of their items, with its 95 % interval.

    Args:
        name: name of the metric, such as "core" or "chatcore".
        scores: per task, the score of each item, 0 to 1.
        baselines: per task, chance accuracy.

    Returns:
        `name`, `name_low` and `name_high`.
    """
    low, high = mean_centered_interval(scores, baselines)
    value = mean_centered([mean(items) for items in scores], baselines)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def difference_with_test(scores: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """How much the mean of `others` lies above that of `scores`, for the same items in the same order.

    Returns:
        `difference`; `low` and `high`, its 95 % interval by a bootstrap over the items; and `p`, see `sign_test`.
    """
    differences = [other - score for score, other in zip(scores, others, strict=True)]
    low, high = mean_centered_interval([differences], [0.0])
    return {"difference": mean(differences), "low": low, "high": high, "p": sign_test(differences)}


def sign_test(differences: Sequence[float]) -> float:
    """Two-sided p of the exact sign test: are as many differences above 0 as below? Those of 0 do not count.

    For scores of 0 and 1 it is McNemar's exact test.
    """
    above, below = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    count = above + below
    tail = sum(math.comb(count, few) for few in range(min(above, below) + 1))
    return min(1.0, 2 * tail / 2**count)


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


def accuracy_with_interval(scores: Sequence[float]) -> dict[str, float]:
    """Accuracy of at least one item, with its 95 % Wilson interval.

    Args:
        scores: of each item, 0 to 1.

    Returns:
        `accuracy`, `accuracy_low` and `accuracy_high`.
    """
    low, high = wilson_interval(sum(scores), len(scores))
    return {"accuracy": mean(scores), "accuracy_low": low, "accuracy_high": high}


def exact_answers(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """1.0 for each answer that equals its reference, white space around both left out; else 0.0."""
    return [float(a.strip() == b.strip()) for a, b in zip(answers, references, strict=True)]


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


def mean_pass_at_k(num_samples: Sequence[int], num_correct: Sequence[int], k: int) -> float:
    """Mean of `pass_at_k` over problems."""
    return mean([pass_at_k(samples, correct, k) for samples, correct in zip(num_samples, num_correct, strict=True)])
