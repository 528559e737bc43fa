"""The kernels run in Triton's interpreter, which `tests/conftest.py` chooses: on the CPU, on ordinary tensors."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _needs_triton():
    pytest.importorskip("triton", reason="the Triton language is not installed: pip install 'hebbline[gpu-build]'")
