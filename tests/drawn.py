"""The distribution that tokens are drawn from, as an array."""

from hebbline.serve.distribution import distribution


def probabilities(logits_V, parameters):
    """The probability [V] of each token; 0 where it is filtered out."""
    return distribution(logits_V, logits_V.max(), parameters).probabilities(len(logits_V))
