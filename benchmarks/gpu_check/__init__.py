"""The check on a machine with an NVIDIA GPU: what is only predicted elsewhere is run, compared and timed."""
