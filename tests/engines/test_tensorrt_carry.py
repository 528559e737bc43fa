"""An artifact with two engines: the second export carries the first one's over, and only of the same model."""

import json
import shutil

import pytest

from hebbline.artifacts import InputError, read_manifest
from hebbline.cli import main
from hebbline.export.tensorrt import EngineOptions, export_engines
from hebbline.export.tensorrt.carry import carry_engines
from hebbline.serve.engine.engines import ENGINES_FILE, Gpu, choose_engine, read_engines
from hebbline.serve.engine.static_cache import StepLimits

LIMITS = StepLimits(batch=4, tokens=40)


@pytest.fixture(scope="module")
def both(engine_artifact, tiny_model_directory, tmp_path_factory):
    """The float16 engine of the other tests, and one in bfloat16, in one artifact."""
    out = tmp_path_factory.mktemp("carry") / "both"
    options = EngineOptions(precision="bfloat16", limits=LIMITS, engines_from=engine_artifact)
    export_engines(tiny_model_directory, out, options)
    return out


def test_an_artifact_holds_both_engines_and_the_runner_picks_by_generation(both, engine_artifact):
    manifest = read_manifest(both)
    new, carried = read_engines(both)
    assert (new.precision, carried.precision) == ("bfloat16", "float16")
    assert {new.file, carried.file} <= set(manifest.files)
    assert manifest.files[carried.file] == read_manifest(engine_artifact).files[carried.file]
    report = json.loads((both / ENGINES_FILE).read_text())["report"]
    assert [one["engine"]["precision"] for one in (report, *report["earlier"])] == ["bfloat16", "float16"]
    runtimes = {new.runtime: new.version}
    assert choose_engine((new, carried), Gpu("T4", "7.5"), runtimes).engine == carried
    assert choose_engine((new, carried), Gpu("A10", "8.6"), runtimes).engine == new


def test_an_engine_of_the_same_name_takes_the_earlier_ones_place(both, tmp_path):
    for name in read_manifest(both).files:
        if name.endswith((".onnx", ".data")):
            shutil.copyfile(both / name, tmp_path / name)
    new, other = read_engines(both)
    carried = carry_engines(both, tmp_path, new)
    assert carried.engines == (other,)
    assert not (tmp_path / new.file).exists() and (tmp_path / other.file).is_file()
    assert len(carried.reports) == 2


def test_engines_of_another_model_are_refused(both, tmp_path):
    for name in read_manifest(both).files:
        if name.endswith((".onnx", ".data")):
            shutil.copyfile(both / name, tmp_path / name)
    (tmp_path / "model.onnx").write_bytes(b"another")
    with pytest.raises(InputError, match=r"of another model or was exported with other options: its model\.onnx"):
        carry_engines(both, tmp_path, read_engines(both)[0])


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
