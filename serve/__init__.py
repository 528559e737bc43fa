"""Serving: a scheduler over a runner, and Triton Inference Server around them."""
