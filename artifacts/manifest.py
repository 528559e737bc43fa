"""`hebbline.json`: what a published directory holds, and the SHA-256 of every other file in it.

Readers call `read_manifest`, which verifies before use and names the file that fails.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedArtifactError, InputError

MANIFEST_FILE = "hebbline.json"
SCHEMA_VERSION = 1
KINDS = ("model", "onnx")
KvFormat = Literal["float32", "bfloat16", "int8"]
KV_FORMATS: tuple[KvFormat, ...] = get_args(KvFormat)
"""How keys and values are kept."""


@dataclass(frozen=True)
class LayerFacts:
    """One sparse layer: its shape, its number of links, and the packed layout where there is one."""

    name: str
    out_features: int
    in_features: int
    links: int
    layout: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.links <= self.out_features * self.in_features:
            raise ValueError(f"layer '{self.name}': {self.links} links in {self.out_features}x{self.in_features}")

    @classmethod
    def of_mask(cls, name: str, mask_NK: NDArray[np.bool_], layout: str | None = None) -> "LayerFacts":
        """The facts of a layer with this mask, bool [N, K]."""
        out_features, in_features = mask_NK.shape
        return cls(name, out_features, in_features, int(np.count_nonzero(mask_NK)), layout)

    @property
    def density(self) -> float:
        """Links over possible links."""
        return self.links / (self.out_features * self.in_features)


@dataclass(frozen=True)
class LanguageModelFacts:
    """What a runner must know of an exported language model to allocate its cache and to stop.

    `context_length` counts tokens, prompt and completion together: it is the length of the cache. `kv_cache` is how the
    op library keeps keys and values unless it is told otherwise: what the artifact was measured with.
    """

    context_length: int
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    eos_token_ids: tuple[int, ...] = ()
    kv_cache: KvFormat = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))
        for name in ("context_length", "vocab_size", "num_layers", "num_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"language_model.{name} must be at least 1")
        if self.kv_cache not in KV_FORMATS:
            raise ValueError(f"language_model.kv_cache '{self.kv_cache}' is none of {', '.join(KV_FORMATS)}")


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256 of one published file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of `hebbline.json`. `files` is filled in by `publish`."""

    kind: str
    method: str | None = None
    recipe_digest: str | None = None
    layers: tuple[LayerFacts, ...] = ()
    language_model: LanguageModelFacts | None = None
    hebbline_version: str = ""
    schema_version: int = SCHEMA_VERSION
    files: dict[str, FileFacts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {self.schema_version} is not {SCHEMA_VERSION}, the one read here")
        if self.kind not in KINDS:
            raise ValueError(f"kind '{self.kind}' is none of {', '.join(KINDS)}")

    def to_json(self) -> str:
        """The manifest as indented JSON, keys in a fixed order."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse a manifest; raises ValueError, KeyError, TypeError or AttributeError where it is malformed."""
        values: dict[str, Any] = json.loads(text)
        values["layers"] = tuple(LayerFacts(**layer) for layer in values["layers"])
        values["files"] = {name: FileFacts(**facts) for name, facts in values["files"].items()}
        if values["language_model"] is not None:
            values["language_model"] = LanguageModelFacts(**values["language_model"])
        return cls(**values)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Read a directory's manifest and verify every file that it lists.

    Raises:
        InputError: there is no such directory, or it holds no manifest.
        DamagedArtifactError: the manifest is malformed, or a file is missing or differs; the message names it.
    """
    path = directory / MANIFEST_FILE
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory")
    if not path.is_file():
        raise InputError(
            f"{directory} is not a published directory: it has no {MANIFEST_FILE}, which publishing writes"
        )
    try:
        manifest = Manifest.from_json(path.read_text())
    except ValueError as error:
        raise DamagedArtifactError(f"{path} is damaged: {error}; publish the directory again") from error
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedArtifactError(
            f"{path} is damaged: fields of a manifest are missing, or of another kind; publish the directory again"
        ) from error
    verify_artifact(directory, manifest)
    return manifest


def verify_artifact(directory: Path, manifest: Manifest) -> None:
    """Compare every file that the manifest lists with its size and SHA-256; raises DamagedArtifactError."""
    for name, facts in manifest.files.items():
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DamagedArtifactError(f"{directory / MANIFEST_FILE} is damaged: it lists a file outside: '{name}'")
        if not path.is_file():
            raise DamagedArtifactError(f"{path} is missing; publish the directory again")
        if path.stat().st_size != facts.size or file_digest(path) != facts.sha256:
            raise DamagedArtifactError(f"{path} is damaged: it is not the file that was published")
