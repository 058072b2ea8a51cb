"""The score as the paper's authors compute it."""

import numpy as np
import torch
from scipy.stats import wasserstein_distance


def wasserstein(base: torch.Tensor, tuned: torch.Tensor) -> float:
    """The Wasserstein distance of two heads, as positions from 0 to 1.

    Args:
        base: theta_B, a head's weights of Q, then K, then V, one after the other.
        tuned: theta_T, likewise.
    """
    of_base, of_tuned = (torch.softmax(theta.float(), dim=0).numpy() for theta in (base, tuned))
    positions = np.arange(len(of_base))
    distance = wasserstein_distance(positions, positions, of_base, of_tuned)
    return float(distance) / (len(positions) - 1)
