"""The models of a gateway by the names that requests call them, as they come and go."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from ...artifacts import InputError
from ...artifacts.manifest import MANIFEST_FILE
from .connection import Connection
from .errors import ApiError
from .metrics import Metrics
from .model import ServedModel

FurtherModels = Callable[[], Mapping[str, Path]]
"""Gives the artifacts of the further models, by their names, at the moment."""


def no_further_models() -> Mapping[str, Path]:
    """For a gateway of one model."""
    return {}


class Catalogue:
    """One model that is always there, and further ones.

    Args:
        first: the model `llm` of the server, under the name by which requests call it.
        further: what else there is; called from a thread, whenever the models are listed or a name is not known.
        metrics: where tokens and times are counted.
    """

    def __init__(self, first: ServedModel, further: FurtherModels, metrics: Metrics) -> None:
        self.first = first
        self._further = further
        self._metrics = metrics
        self._models: dict[str, tuple[tuple[int, int], ServedModel]] = {}
        self._connection: Connection | None = None
        self._refreshing = asyncio.Lock()

    @property
    def max_prompt_bytes(self) -> int:
        """The most bytes that a prompt for any of the models can have."""
        return max(model.max_prompt_bytes for model in (self.first, *(model for _, model in self._models.values())))

    def connect(self, connection: Connection) -> None:
        """Use a server, from the running event loop."""
        self._connection = connection
        self.first.connect(connection)

    async def listed(self) -> list[ServedModel]:
        """The models that can be asked now."""
        await self._refresh()
        further = [model for _, model in self._models.values()]
        ready = await asyncio.gather(*(model.is_ready() for model in further))
        return [self.first, *(model for model, is_ready in zip(further, ready, strict=True) if is_ready)]

    async def find(self, name: str) -> ServedModel:
        """The model of a name; raises ApiError (404) where there is none."""
        if name == self.first.name:
            return self.first
        await self._refresh()
        if name in self._models:
            return self._models[name][1]
        names = ", ".join(f"'{known}'" for known in (self.first.name, *self._models))
        message = f"there is no model '{name[:80]}'; this server has {names}"
        raise ApiError(404, message, param="model", code="model_not_found")

    async def close(self) -> None:
        """End all connections."""
        for model in (self.first, *(model for _, model in self._models.values())):
            await model.close()

    async def _refresh(self) -> None:
        """Take up models that are new, or other ones of the same name, and forget those that are gone."""
        async with self._refreshing:
            try:
                wanted = await asyncio.to_thread(_versions, self._further)
            except (InputError, OSError) as error:
                _say(f"the list of models stays as it was: {error}")
                return
            for name, (artifact, version) in wanted.items():
                if name not in self._models or self._models[name][0] != version:
                    await self._take_up(name, artifact, version)
            self._models = {name: entry for name, entry in self._models.items() if name in wanted}

    async def _take_up(self, name: str, artifact: Path, version: tuple[int, int]) -> None:
        self._models.pop(name, None)
        try:
            model = await asyncio.to_thread(ServedModel, artifact, name, self._metrics, name)
        except (InputError, OSError) as error:
            _say(f"the model '{name}' is left out: {error}")
            return
        assert self._connection is not None, "the catalogue has been connected"
        model.connect(self._connection)
        self._models[name] = (version, model)


def _say(message: str) -> None:
    print(f"hebbline gateway: {message}", flush=True)


def _versions(further: FurtherModels) -> dict[str, tuple[Path, tuple[int, int]]]:
    """The artifacts of further models, and what tells each from another one at the same place."""
    found: dict[str, tuple[Path, tuple[int, int]]] = {}
    for name, artifact in further().items():
        facts = (artifact / MANIFEST_FILE).stat()
        found[name] = (artifact, (facts.st_ino, facts.st_mtime_ns))
    return found
