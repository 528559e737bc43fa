"""Sparse linear layers on NVIDIA GPUs, written in the Triton language."""
