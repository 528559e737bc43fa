"""What the code of the authors of CHT gave for small graphs, as numbers: of each output, the values at some places."""

import json
from pathlib import Path

import numpy as np

_NUMBERS = json.loads(Path(__file__).with_name("authors_numbers.json").read_text())


def mask_of(name):
    """A mask of the reference, bool [N, K]."""
    stored = _NUMBERS["masks"][name]
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(stored["links"]), np.uint8), bitorder="little")
    return bits[: np.prod(stored["shape"])].reshape(stored["shape"]).astype(bool)


def links_of(name):
    """What is stored of each link, in float32 [N, K], and 0 elsewhere."""
    stored = _NUMBERS["values"][name]
    found = np.zeros(np.prod(stored["shape"]), np.float32)
    found[stored["places"]] = stored["values"]
    return found.reshape(stored["shape"])


def cases(output):
    """The graphs for which the reference has an output, by name."""
    return [
        name.removesuffix(f"/{output}") for part in _NUMBERS.values() for name in part if name.endswith(f"/{output}")
    ]


def assert_agrees(found, name, rtol, atol):
    """Compare an output with the numbers that are stored of it."""
    stored = _NUMBERS["values"][name]
    assert list(np.shape(found)) == stored["shape"]
    np.testing.assert_allclose(np.ravel(found)[stored["places"]], stored["values"], rtol=rtol, atol=atol, err_msg=name)
