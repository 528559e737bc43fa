"""Converts a model to another opset: `python conversion_run.py MODEL OPSET OUT`.

The converter is C++ that a file can bring down, so that it runs here, in a process of its own. It imports nothing of
its package.
"""

import resource
import sys

import onnx
from onnx import version_converter

_MEMORY = 1 << 33
"""Bytes of address space; large weights are not in the model that is converted."""


def main(source: str, opset: str, out: str) -> None:
    """Convert one file; the fault goes to the error stream, as one line."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        model = version_converter.convert_version(onnx.load(source, load_external_data=False), int(opset))
    except Exception as error:  # the converter has no exception class of its own
        sys.exit(" ".join(str(error).split()))
    onnx.save(model, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
