"""Signals of how good features are, from images alone."""

import numpy as np
from jaxtyping import Float

from greenjax.evaluation.views import found_again, unit

RANK, FOUND, ALIGNMENT, UNIFORMITY, SPREAD = "rank", "other view found", "alignment", "uniformity", "spread"
SIGNALS = (RANK, FOUND, ALIGNMENT, UNIFORMITY, SPREAD)


def signals(first: Float[np.ndarray, "n c"], second: Float[np.ndarray, "n c"]) -> dict[str, float]:
    """Of the features of two random views of n images."""
    a, b = unit(first), unit(second)
    return {
        RANK: effective_rank(first),
        FOUND: found_again(first, second),
        ALIGNMENT: float(np.square(a - b).sum(axis=1).mean()),  # arXiv 2005.10242, section 4.1.1
        UNIFORMITY: uniformity(a),
        SPREAD: spread(first, second),
    }


def effective_rank(features: Float[np.ndarray, "n c"]) -> float:
    """e to the entropy of the singular values as shares of their sum (RankMe, arXiv 2210.02885): from 1 to c."""
    values = np.linalg.svd(features, compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def uniformity(a: Float[np.ndarray, "n c"]) -> float:
    """log of the mean of exp(-2 d^2) over pairs of images (arXiv 2005.10242, section 4.1.2); low is spread out."""
    squared = 2 - 2 * (a @ a.T)
    pairs = squared[~np.eye(len(a), dtype=bool)]
    return float(np.log(np.exp(-2 * pairs).mean()))


def spread(first: Float[np.ndarray, "n c"], second: Float[np.ndarray, "n c"]) -> float:
    """The share of the variance of views that lies between images, not between views of one image."""
    within = np.square(first - second).sum(axis=1).mean() / 2
    whole = np.concatenate([first, second]).var(axis=0).sum()
    return float(1 - within / max(whole, 1e-12))
