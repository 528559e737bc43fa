"""The vocabulary that every stage shares: manifest, digests, atomic publication, masks, errors."""

from .errors import CheckError, DamagedArtifactError, HebblineError, InputError, UnsupportedModelError
from .manifest import KV_FORMATS, KvFormat, LanguageModelFacts, LayerFacts, Manifest, read_manifest, verify_artifact
from .masks import load_masks, pack_mask, save_masks, unpack_mask
from .publishing import publish

__all__ = [
    "KV_FORMATS",
    "CheckError",
    "DamagedArtifactError",
    "HebblineError",
    "InputError",
    "KvFormat",
    "LanguageModelFacts",
    "LayerFacts",
    "Manifest",
    "UnsupportedModelError",
    "load_masks",
    "pack_mask",
    "publish",
    "read_manifest",
    "save_masks",
    "unpack_mask",
    "verify_artifact",
]
