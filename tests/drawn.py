"""The distribution that tokens are drawn from, as an array."""

import numpy as np

from hebbline.serve.distribution import distribution


def probabilities(logits_V, parameters):
    """The probability [V] of each token; 0 where it is filtered out."""
    found = distribution(logits_V, logits_V.max(), parameters)
    result_V = np.zeros(len(logits_V))
    weights_N = found.weights_N if found.kept_N is None else found.weights_N * found.kept_N
    result_V[slice(None) if found.ids_N is None else found.ids_N] = weights_N / weights_N.sum()
    return result_V
