import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from hebbline.artifacts import DamagedArtifactError, InputError, LayerFacts, Manifest, publish, read_manifest


def publish_text(target, **files):
    with publish(target) as publication:
        for name, text in files.items():
            (publication.directory / name).write_text(text)
        publication.finish(Manifest("model", method="static", layers=(LayerFacts("fc", 4, 5, 6),)))


def test_manifest_round_trips_and_verifies(tmp_path):
    publish_text(tmp_path / "out", a="1", b="22")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.layers == (LayerFacts("fc", 4, 5, 6),)
    assert {name: facts.size for name, facts in manifest.files.items()} == {"a": 1, "b": 2}
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_every_flipped_byte_is_found_and_the_file_named(tmp_path):
    publish_text(tmp_path / "out", a="some text", b="other")
    path = tmp_path / "out/a"
    original = path.read_bytes()
    for place in range(len(original)):
        damaged = bytearray(original)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DamagedArtifactError, match=str(path)):
            read_manifest(tmp_path / "out")


@pytest.mark.parametrize("damage", ["missing", "truncated", "manifest", "outside"])
def test_other_damage_names_the_file(tmp_path, damage):
    publish_text(tmp_path / "out", a="some text")
    file, manifest = tmp_path / "out/a", tmp_path / "out/hebbline.json"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_text("some")
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    else:
        values = json.loads(manifest.read_text())
        values["files"]["../a"] = values["files"].pop("a")
        manifest.write_text(json.dumps(values))
    with pytest.raises(DamagedArtifactError, match=r"out/a|hebbline\.json"):
        read_manifest(tmp_path / "out")


def test_failure_leaves_the_old_directory_and_nothing_else(tmp_path):
    publish_text(tmp_path / "out", a="old")
    with pytest.raises(RuntimeError), publish(tmp_path / "out") as publication:
        (publication.directory / "a").write_text("new")
        raise RuntimeError("interrupted")
    assert (tmp_path / "out/a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_replacing_swaps_the_whole_directory(tmp_path):
    publish_text(tmp_path / "out", a="old", gone="x")
    publish_text(tmp_path / "out", a="new")
    assert set(read_manifest(tmp_path / "out").files) == {"a"}
    assert (tmp_path / "out/a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_published_files_are_readable_by_others(tmp_path):
    publish_text(tmp_path / "out", a="1")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out/a").stat().st_mode & 0o777 == 0o644


def test_a_directory_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("three years of work")
    with pytest.raises(InputError, match="was not published by hebbline"):
        publish_text(tmp_path / "out", a="1")
    assert (tmp_path / "out/thesis.tex").exists()


def test_a_newer_schema_is_refused(tmp_path):
    publish_text(tmp_path / "out", a="1")
    manifest = tmp_path / "out/hebbline.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(DamagedArtifactError, match="schema_version 99"):
        read_manifest(tmp_path / "out")


def test_an_unknown_format_of_the_cache_is_damage(tmp_path):
    publish_text(tmp_path / "out", a="1")
    path = tmp_path / "out/hebbline.json"
    facts = {"context_length": 8, "vocab_size": 9, "num_layers": 1, "num_kv_heads": 1, "head_dim": 16}
    values = json.loads(path.read_text()) | {"language_model": facts | {"kv_cache": "int8"}}
    path.write_text(json.dumps(values))
    assert read_manifest(tmp_path / "out").language_model.kv_cache == "int8"
    values["language_model"]["kv_cache"] = "int3"
    path.write_text(json.dumps(values))
    with pytest.raises(DamagedArtifactError, match=r"hebbline\.json.*kv_cache 'int3'"):
        read_manifest(tmp_path / "out")


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from hebbline.artifacts import publish

    with publish(Path(sys.argv[1])) as publication:
        (publication.directory / "large").write_bytes(bytes(1 << 20))
        assert len(list(Path(sys.argv[1]).parent.iterdir())) == 1
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_killed_process_leaves_nothing_behind(tmp_path, name):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path / "out", name]
    assert subprocess.run(command).returncode == -signal.Signals[name]
    deadline = time.monotonic() + 20
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []
