"""The state of a sparsifier as JSON, for checkpoints that are not ours, and back.

Legend: N out_features, K in_features.

A mask is its links as bits, row by row, each row padded to whole bytes (see `artifacts.masks`), deflated, in base64:
some 0.4 bytes for each possible link, of all three kinds of masks together, where 30% are links.
"""

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...artifacts import DamagedArtifactError, pack_mask, unpack_mask
from .sparsifier import Sparsifier
from .update import UpdateReport

_PARTS = ("masks", "ever", "grown")


def export_graphs(sparsifier: Sparsifier, updates: Sequence[UpdateReport]) -> dict[str, Any]:
    """All that `Sparsifier.state_dict` holds, the reports of its updates, and the last step of an update, as JSON."""
    state = sparsifier.state_dict()
    masks = {part: {name: _encode(mask_NK) for name, mask_NK in state[part].items()} for part in _PARTS}
    return {
        "steps": state["steps"],
        "stop": sparsifier.config.update.stop,
        "stopped": state["stopped"],
        "updates": [asdict(report) for report in updates],
        **masks,
    }


def import_graphs(graphs: Mapping[str, Any]) -> tuple[dict[str, Any], list[UpdateReport]]:
    """The `state_dict` of a sparsifier and the reports of its updates, from what `export_graphs` gave.

    Raises:
        DamagedArtifactError: it is not what was written.
    """
    try:
        state: dict[str, Any] = {"steps": graphs["steps"], "stopped": graphs["stopped"]}
        for part in _PARTS:
            state[part] = {name: _decode(mask) for name, mask in graphs[part].items()}
        return state, [UpdateReport(**report) for report in graphs["updates"]]
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise DamagedArtifactError(f"the checkpoint's graphs, in trainer_state.json, are damaged: {error!r}") from error


def stop_of(graphs: Mapping[str, Any]) -> int | None:
    """The `update.stop` of what `export_graphs` gave."""
    return graphs.get("stop")


def _encode(mask_NK: Tensor) -> dict[str, Any]:
    packed_NP = pack_mask(mask_NK.cpu().numpy())
    return {"shape": list(mask_NK.shape), "links": base64.b64encode(zlib.compress(packed_NP.tobytes())).decode()}


def _decode(mask: Mapping[str, Any]) -> Tensor:
    rows, columns = mask["shape"]
    packed = np.frombuffer(zlib.decompress(base64.b64decode(mask["links"], validate=True)), np.uint8)
    return torch.from_numpy(unpack_mask(packed.reshape(rows, -1), columns))
