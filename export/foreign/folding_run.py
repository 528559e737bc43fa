"""Computes the constants of a model without inputs: `python folding_run.py MODEL MOST OUT.npz`.

ONNX Runtime computes them, as it would when it loads the model they are from. It runs in a process of its own, and
imports nothing of its package. No more than MOST elements are accepted.
"""

import resource
import sys

import numpy as np
import onnxruntime

_MEMORY = 1 << 33
_BYTES_PER_ELEMENT = 32
"""Address space: what the runtime itself takes, and some tensors of the size of the result."""


def main(model: str, most: str, out: str) -> None:
    """Compute one model; the fault goes to the error stream, as one line."""
    limit = _MEMORY + _BYTES_PER_ELEMENT * int(most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        arrays = [np.asarray(array) for array in session.run(None, {})]
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception; MemoryError too
        sys.exit(" ".join(str(error).split()) or type(error).__name__)
    if sum(array.size for array in arrays) > int(most):
        sys.exit(f"it computes more than {most} numbers")
    np.savez(out, **{str(place): array for place, array in enumerate(arrays)})


if __name__ == "__main__":
    main(*sys.argv[1:])
