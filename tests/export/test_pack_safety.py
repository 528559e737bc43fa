"""Attempts to make `pack` read outside the model's directory, crash, hang, or trust what a file says of itself."""

import os
import socket

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pack_models import (
    FLOAT,
    SIZE,
    K,
    N,
    external_tensor,
    hostile_directory,
    node,
    one_layer,
    refused,
    sparse,
)

from hebbline.artifacts import InputError
from hebbline.export import pack
from hebbline.export.foreign import files, open_document


@pytest.fixture
def model_directory(tmp_path):
    return hostile_directory(tmp_path)


def test_sound_external_data_is_read(model_directory):
    path = model_directory / "model.onnx"
    path.write_bytes(one_layer(external_tensor("./weights.bin", 0, SIZE)).SerializeToString())
    (layer,) = pack(path, model_directory / "out").layers
    assert layer.packed and layer.links == np.count_nonzero(sparse(K, N))


OUTSIDE = {
    "parent": "../secret.bin",
    "through a directory": "sub/../../secret.bin",
    "absolute": "{root}/secret.bin",
    "device": "/dev/zero",
    "doubled slash": "//etc/passwd",
    "empty": "",
    "empty step": "sub//weights.bin",
    "zero byte": "weights.bin\0",
    "itself": ".",
    "directory": "sub",
    "missing": "nowhere.bin",
    "line break": "no\nwhere.bin",
}


@pytest.mark.parametrize("location", OUTSIDE.values(), ids=list(OUTSIDE))
def test_locations_outside_the_directory(model_directory, location):
    (model_directory / "sub").mkdir()
    location = location.format(root=model_directory.parent)
    refused(model_directory, one_layer(external_tensor(location, 0, SIZE)), "tensor 'W': external data")


def link_file(directory):
    (directory / "bad.bin").symlink_to(directory.parent / "secret.bin")


def link_directory(directory):
    (directory / "sub").symlink_to(directory.parent)
    (directory.parent / "bad.bin").write_bytes(b"\0" * SIZE)


def hard_link(directory):
    os.link(directory.parent / "secret.bin", directory / "bad.bin")


def pipe(directory):
    os.mkfifo(directory / "bad.bin")


def unix_socket(directory):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(directory / "bad.bin"))


LINKS = {
    "symbolic link": (link_file, "bad.bin", "symbolic link"),
    "link to a directory": (link_directory, "sub/bad.bin", "without following links"),
    "hard link": (hard_link, "bad.bin", "2 names"),
    "pipe": (pipe, "bad.bin", "not an ordinary file"),
    "socket": (unix_socket, "bad.bin", "not an ordinary file"),
}


@pytest.mark.parametrize(("prepare", "location", "match"), LINKS.values(), ids=list(LINKS))
def test_links_and_special_files(model_directory, prepare, location, match):
    prepare(model_directory)
    refused(model_directory, one_layer(external_tensor(location, 0, SIZE)), match)


def test_a_file_swapped_for_a_link_after_the_look(model_directory, monkeypatch):
    """The name is looked at, then opened; in between it is swapped. The open itself must not follow."""
    look = os.stat

    def swap_after(name, **options):
        facts = look(name, **options)
        if name == "weights.bin":
            (model_directory / "weights.bin").unlink()
            (model_directory / "weights.bin").symlink_to(model_directory.parent / "secret.bin")
        return facts

    monkeypatch.setattr(files.os, "stat", swap_after)
    refused(model_directory, one_layer(external_tensor("weights.bin", 0, SIZE)), "without following links")


def test_a_device_as_the_model(tmp_path):
    with pytest.raises(InputError, match="not an ordinary file"):
        pack("/dev/zero", tmp_path / "out")


SPANS = {
    "past the end": (8, SIZE, {}, "are asked of a file of"),
    "far past the end": (2**62, SIZE, {}, "are asked of a file of"),
    "beyond 64 bits": (2**64 + 8, SIZE, {}, "are asked of a file of"),
    "negative offset": (-4, SIZE, {}, "not a count of bytes"),
    "negative length": (0, -SIZE, {}, "not a count of bytes"),
    "no number": ("0x0", SIZE, {}, "not a count of bytes"),
    "other digits": ("\u0663", SIZE, {}, "not a count of bytes"),
    "too short": (0, SIZE - 4, {}, f"take {SIZE} bytes, its external data has {SIZE - 4}"),
    "too long": (0, SIZE + 4, {}, "its external data has"),
    "no length, larger dimensions": (0, None, {"dims": (K, N + 1)}, "are asked of a file of"),
    "overflow of 64 bits": (0, SIZE, {"dims": (2**62, 2**62, 16)}, "its external data has"),
    "negative dimension": (0, SIZE, {"dims": (-K, -N)}, "include a negative one"),
    "unknown key": (0, SIZE, {"basepath": "/"}, "has the keys"),
}


@pytest.mark.parametrize(("offset", "length", "more", "match"), SPANS.values(), ids=list(SPANS))
def test_spans_that_are_not_there(model_directory, offset, length, more, match):
    refused(model_directory, one_layer(external_tensor("weights.bin", offset, length, **more)), match)


def test_a_location_given_twice(model_directory):
    tensor = external_tensor("weights.bin", 0, SIZE)
    tensor.external_data.add(key="location", value="../secret.bin")
    refused(model_directory, one_layer(tensor), "has the keys")


def test_a_file_that_shrinks_while_it_is_read(model_directory):
    path = model_directory / "model.onnx"
    path.write_bytes(one_layer(external_tensor("weights.bin", 0, SIZE)).SerializeToString())
    with open_document(path) as document:
        os.truncate(model_directory / "weights.bin", SIZE // 2)
        with pytest.raises(InputError, match=r"ends \d+ bytes early"):
            b"".join(document.files.blocks("weights.bin", 0, SIZE, "W"))


def inline(**fields):
    return TensorProto(name="W", **fields)


INLINE = {
    "raw too short": inline(data_type=FLOAT, dims=(K, N), raw_data=b"\0" * 8),
    "raw too long": inline(data_type=FLOAT, dims=(K, N), raw_data=b"\0" * (SIZE + 1)),
    "no data": inline(data_type=FLOAT, dims=(K, N)),
    "gigantic": inline(data_type=FLOAT, dims=(2**40, 2**40), raw_data=b""),
    "wraps to its size": inline(data_type=FLOAT, dims=(2**33, 2**31), raw_data=b"" * 8),
    "negative": inline(data_type=FLOAT, dims=(-1, -1), raw_data=b"\0" * 4),
    "unknown type": inline(data_type=99, dims=(1,), raw_data=b"\0" * 4),
    "no type": inline(dims=(1,), raw_data=b"\0" * 4),
    "too many dimensions": inline(data_type=FLOAT, dims=(1,) * 100, raw_data=b"\0" * 4),
    "other field": inline(data_type=FLOAT, dims=(2,), int64_data=[1, 2]),
    "two fields": inline(data_type=FLOAT, dims=(2,), float_data=[1, 2], raw_data=b"\0" * 8),
    "typed too short": inline(data_type=FLOAT, dims=(K, N), float_data=[1.0]),
    "half a byte": inline(data_type=TensorProto.INT4, dims=(5,), raw_data=b"\0" * 2),
    "segment": inline(data_type=FLOAT, dims=(1,), raw_data=b"\0" * 4, segment=TensorProto.Segment(begin=0, end=9)),
}


@pytest.mark.parametrize("tensor", INLINE.values(), ids=list(INLINE))
def test_tensors_that_disagree_with_their_data(model_directory, tensor):
    refused(model_directory, one_layer(tensor), "tensor 'W': ")
    constant = helper.make_node("Constant", [], ["W"])
    constant.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
    refused(model_directory, one_layer(None, [constant, node("MatMul", ["X", "W"], ["Y"])]), "tensor 'W': ")
