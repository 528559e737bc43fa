"""The kernels checked and timed on a GPU with nothing but torch, Triton and NumPy; see `run`."""
