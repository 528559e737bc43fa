"""Benchmarks: the speed that a user will get on this machine, beside the dense model in the same run."""
