"""An artifact with a real engine, built once for all tests of this folder."""

from pathlib import Path

import pytest

from hebbline.export.graph import SourceModel, load_source
from hebbline.export.tensorrt import EngineOptions, export_engines
from hebbline.runtime.static_cache import StepLimits

LIMITS = StepLimits(batch=4, tokens=40)


@pytest.fixture(scope="session")
def source(tiny_model_directory) -> SourceModel:
    return load_source(tiny_model_directory)


@pytest.fixture(scope="session")
def engine_export(tmp_path_factory, tiny_model_directory):
    """The published directory and the report of `--target tensorrt-rtx`."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'hebbline[gpu-build]'")
    out = tmp_path_factory.mktemp("engines") / "tiny"
    _, report = export_engines(tiny_model_directory, out, EngineOptions(limits=LIMITS))
    return out, report


@pytest.fixture(scope="session")
def engine_artifact(engine_export) -> Path:
    return engine_export[0]
