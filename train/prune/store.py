"""Finished blocks on disk: a run that was cut goes on where it was.

Legend: N out_features, K in_features.

A folder holds `run.json`, which says what the run is of; a safetensors file for each finished block: `weight.<layer>`
as the layer holds it, `mask.<layer>` packed, and the block's figures as metadata; and `dense-*.json`, the dense model's
perplexity of a text. Files appear whole or not at all.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...artifacts import DamagedArtifactError, pack_mask, unpack_mask
from ...artifacts.publishing import sync, write_atomically
from ...runtime.perplexity import Perplexity
from .layers import Layer
from .result import BlockResult, LayerResult

_RUN_FILE = "run.json"


@dataclass(frozen=True)
class BlockStore:
    """The finished blocks of a run. Make one with `open_store`."""

    folder: Path

    def has(self, index: int) -> bool:
        """Whether a block is finished."""
        return self._path(index).is_file()

    @property
    def finished(self) -> int:
        """How many blocks are."""
        return len(list(self.folder.glob("block-*.safetensors")))

    def save(self, index: int, layers: Sequence[Layer], masks: dict[str, Tensor], result: BlockResult) -> None:
        """Write a finished block, and let the model go on with the file's weights in place of its own."""
        tensors = {f"weight.{layer.local_name}": layer.module.weight.detach().contiguous().cpu() for layer in layers}
        for layer in layers:
            packed_NP = pack_mask(masks[layer.name].cpu().numpy())
            tensors[f"mask.{layer.local_name}"] = torch.from_numpy(packed_NP)
        path = self._path(index)
        temporary = path.with_suffix(".part")
        save_file(tensors, temporary, metadata={"block": json.dumps(asdict(result))})
        sync(temporary)
        temporary.replace(path)
        sync(self.folder)
        self._map_weights(path, layers)

    def load(self, index: int, layers: Sequence[Layer]) -> tuple[dict[str, Tensor], BlockResult]:
        """Put a finished block's weights into the model; its masks, bool [N, K] by name, and its figures.

        Raises:
            DamagedArtifactError: the file cannot be read, or is of another block.
        """
        path = self._path(index)
        try:
            with safe_open(path, framework="pt") as tensors:
                masks = {layer.name: _mask(tensors.get_tensor(f"mask.{layer.local_name}"), layer) for layer in layers}
                result = _block_result(json.loads(tensors.metadata()["block"]))
            self._map_weights(path, layers)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DamagedArtifactError(f"{path} is damaged ({error}); delete it to prune the block again") from error
        return masks, result

    def recall(self, ids_BS: Tensor, measure: Callable[[Tensor], Perplexity]) -> Perplexity:
        """What was measured of the dense model on a text, or what is now; a run that goes on need not measure again."""
        path = self.folder / f"dense-{hashlib.sha256(ids_BS.numpy().tobytes()).hexdigest()[:16]}.json"
        if not path.is_file():
            write_atomically(path, json.dumps(asdict(measure(ids_BS))) + "\n")
        try:
            return Perplexity(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise DamagedArtifactError(f"{path} is damaged ({error}); delete it to measure again") from error

    def remove(self) -> None:
        """Delete all of it, and the folder above where nothing else is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _map_weights(self, path: Path, layers: Sequence[Layer]) -> None:
        with safe_open(path, framework="pt") as tensors:
            for layer in layers:
                stored, weight = tensors.get_tensor(f"weight.{layer.local_name}"), layer.module.weight
                if stored.shape != weight.shape:
                    raise ValueError(f"weight of '{layer.name}' has shape {tuple(stored.shape)}")
                weight.data = stored.to(weight.device, weight.dtype)

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:04}.safetensors"


def open_store(folder: Path, digest: str) -> BlockStore:
    """The store of a run in a folder; what is there of another run, which has another digest, is deleted."""
    run = folder / _RUN_FILE
    if not run.is_file() or json.loads(run.read_text()).get("digest") != digest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_atomically(run, json.dumps({"digest": digest}) + "\n")
    return BlockStore(folder)


def _mask(packed_NP: Tensor, layer: Layer) -> Tensor:
    mask_NK = torch.from_numpy(unpack_mask(packed_NP.numpy(), layer.shape[1]))
    return mask_NK.to(layer.module.weight.device)


def _block_result(values: dict) -> BlockResult:
    layers = tuple(LayerResult(**layer) for layer in values.pop("layers"))
    return BlockResult(**values, layers=layers)
