"""An artifact with two engines: the second export copies the first one's, and only of the same model."""

import json

import pytest

from hebbline.artifacts import InputError, read_manifest
from hebbline.cli import main
from hebbline.export import export_model
from hebbline.export.tensorrt import EngineOptions, export_engines
from hebbline.export.tensorrt.earlier import read_earlier
from hebbline.runtime.engines import ENGINES_FILE, Gpu, choose_engine, read_engines
from hebbline.runtime.static_cache import StepLimits

LIMITS = StepLimits(batch=4, tokens=40)


@pytest.fixture(scope="module")
def both(engine_artifact, tiny_model_directory, tmp_path_factory):
    """The float16 engine of the other tests, and one in bfloat16, in one artifact."""
    out = tmp_path_factory.mktemp("earlier") / "both"
    options = EngineOptions(precision="bfloat16", limits=LIMITS, engines_from=engine_artifact)
    export_engines(tiny_model_directory, out, options)
    return out


def test_an_artifact_holds_both_engines_and_the_runner_picks_by_generation(both, engine_artifact):
    manifest = read_manifest(both)
    new, copied = read_engines(both)
    assert (new.precision, copied.precision) == ("bfloat16", "float16")
    assert {new.file, copied.file} <= set(manifest.files)
    assert manifest.files[copied.file] == read_manifest(engine_artifact).files[copied.file]
    report = json.loads((both / ENGINES_FILE).read_text())["report"]
    assert [one["engine"]["precision"] for one in (report, *report["earlier"])] == ["bfloat16", "float16"]
    runtimes = {new.runtime: new.version}
    assert choose_engine((new, copied), Gpu("T4", "7.5"), runtimes).engine == copied
    assert choose_engine((new, copied), Gpu("A10", "8.6"), runtimes).engine == new


def test_an_engine_of_the_same_name_takes_the_earlier_ones_place(both, tmp_path):
    new, other = read_engines(both)
    earlier = read_earlier(both, both)
    assert earlier.copy(tmp_path, new) == (other,)
    assert not (tmp_path / new.file).exists() and (tmp_path / other.file).is_file()
    assert len(earlier.reports) == 2


def test_engines_of_another_model_are_refused_before_anything_is_built(both, tiny_model_directory, tmp_path):
    options = EngineOptions(limits=LIMITS, engines_from=both)
    with pytest.raises(
        InputError, match=r"of another model or was exported with other options: its model\.hebbline\.onnx"
    ):
        export_engines(tiny_model_directory, tmp_path / "out", options, values="int8", progress=_no_build)
    assert not (tmp_path / "out").exists()


def _no_build(stage):
    assert not stage.startswith("building"), stage


def test_an_artifact_without_engines_is_refused(both, tiny_model_directory, tmp_path):
    export_model(tiny_model_directory, tmp_path / "plain")
    with pytest.raises(InputError, match=r"plain holds no engine to copy"):
        read_earlier(tmp_path / "plain", both)


def test_the_option_is_for_engines(engine_artifact, tiny_model_directory, tmp_path, capsys):
    command = [
        "export",
        str(tiny_model_directory),
        "--out",
        str(tmp_path / "a"),
        "--engines-from",
        str(engine_artifact),
    ]
    assert main(command) == 2
    assert "--engines-from is for targets with an engine" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
