"""The loaders of the hub's data sets, on local data sets of the same layout, written by `datasets` itself."""

import gzip

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from tiny import make_text

from hebbline.artifacts import InputError
from hebbline.data import images, load_documents
from hebbline.data.images import EMNIST_FILES, load_images
from hebbline.data.pairs import load_pairs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def write_text(folder, column="text"):
    """As C4, OpenWebText and WikiText: shards in parquet, of a configuration, WikiText's with empty rows."""
    texts = make_text(60)
    for shard in range(2):
        rows = {column: [*texts[30 * shard : 30 * shard + 30], ""], "timestamp": ["2019-04-25"] * 31}
        path = folder / f"en/train-{shard:05}-of-00002.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows).to_parquet(path)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/train-*\n---\n"
    )
    return texts


@pytest.mark.parametrize("limit", [0, 40])
def test_texts(tmp_path, limit):
    texts = write_text(tmp_path / "c4")
    documents = load_documents(f"hub://{tmp_path / 'c4'}:en", 0.2, limit)
    found = documents.train + documents.validation
    assert sorted(found) == sorted(texts[:39] if limit else texts), "an empty row counts, and is passed over"
    assert documents.train and documents.validation


def test_texts_that_are_not_there(tmp_path):
    write_text(tmp_path / "other", column="content")
    for limit in (0, 5):
        with pytest.raises(InputError, match="has no column 'text', but content, timestamp"):
            load_documents(f"hub://{tmp_path / 'other'}:en", 0.2, limit)
    with pytest.raises(InputError, match="cannot be loaded from the hub"):
        load_documents(f"hub://{tmp_path / 'other'}:xx", 0.2)


@pytest.mark.parametrize("nested", [False, True])
def test_sentence_pairs(tmp_path, nested):
    """Multi30k has JSON lines with languages as columns; WMT has them in a column `translation`."""
    pairs = [(f"A dog runs {number}.", f"Ein Hund rennt {number}.") for number in range(30)]
    for part, rows in (("train", pairs[:20]), ("val", pairs[20:25]), ("test", pairs[25:])):
        columns = [{"en": english, "de": f" {german}"} for english, german in rows]
        data = Dataset.from_list([{"translation": row} for row in columns] if nested else columns)
        (tmp_path / "pairs").mkdir(exist_ok=True)
        data.to_json(tmp_path / f"pairs/{part}.jsonl")
    loaded = load_pairs(f"hub://{tmp_path / 'pairs'}", ("en", "de"), 0.5)
    assert loaded.train == pairs[:20] and loaded.test == pairs[25:]
    assert load_pairs(f"hub://{tmp_path / 'pairs'}", ("de", "en"), 0.5).test[0] == pairs[25][::-1]
    with pytest.raises(InputError, match="cannot be loaded from the hub"):
        load_pairs(f"hub://{tmp_path / 'pairs'}", ("en", "fr"), 0.5)


@pytest.mark.parametrize(("name", "column", "shape"), [("mnist", "image", (28, 28)), ("cifar-10", "img", (32, 32, 3))])
def test_images(tmp_path, monkeypatch, name, column, shape):
    rng = np.random.default_rng(0)
    pixels = {part: rng.integers(0, 256, (count, *shape), np.uint8) for part, count in (("train", 12), ("test", 5))}
    features = Features({column: Image(), "label": ClassLabel(num_classes=3)})
    for part, pictures in pixels.items():
        rows = {column: list(pictures), "label": [number % 3 for number in range(len(pictures))]}
        (tmp_path / "data").mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"data/{part}-00000-of-00001.parquet")
    monkeypatch.setitem(images.HUB_NAMES, name, str(tmp_path))
    loaded = load_images(name, "hub", limit=10)
    assert loaded.train.shape == (10, np.prod(shape)) and loaded.test.shape == (5, np.prod(shape))
    assert loaded.train_labels.tolist() == [number % 3 for number in range(10)] and loaded.classes == 3
    mean, deviation = (np.array(values, np.float32) for values in images._STATISTICS[name])
    expected = (pixels["test"].reshape(5, -1, len(mean)).astype(np.float32) / 255 - mean) / deviation
    np.testing.assert_allclose(loaded.test.numpy(), expected.reshape(5, -1), rtol=1e-5, atol=1e-6)


def test_emnist_is_read_from_files_in_the_format_of_mnist(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for file in EMNIST_FILES:
        count = 9 if "train" in file else 4
        header, size = (16, count * 28 * 28) if "images" in file else (8, count)
        content = bytes(header) + rng.integers(0, 4, size, np.uint8).tobytes()
        (tmp_path / file).write_bytes(gzip.compress(content))
    asked = []

    def download(repository, file, repo_type):
        asked.append((repository, repo_type))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    loaded = load_images("emnist", "auto")
    assert loaded.train.shape == (9, 784) and loaded.test.shape == (4, 784) and len(loaded.train_labels) == 9
    assert set(asked) == {(images.EMNIST_HUB_NAME, "dataset")}
