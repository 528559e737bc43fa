"""Triton Inference Server around the scheduler: the protocol, the backend, the repository and a local server."""
