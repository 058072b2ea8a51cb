"""Computes the score as the code of the paper's authors does."""

import numpy as np
import torch
from scipy.stats import wasserstein_distance


def wasserstein(base: torch.Tensor, tuned: torch.Tensor) -> float:
    """Returns the Wasserstein distance of two heads, with positions from 0 to 1.

    Args:
        base: theta_B, the weight vector of a head: Q, then K, then V.
        tuned: theta_T, in the same order.
    """
    of_base, of_tuned = (torch.softmax(theta.float(), dim=0).numpy() for theta in (base, tuned))
    positions = np.arange(len(of_base))
    distance = wasserstein_distance(positions, positions, of_base, of_tuned)
    return float(distance) / (len(positions) - 1)
