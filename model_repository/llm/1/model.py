"""The model as Triton's Python backend loads it; all of it is in hebbline.serve.triton.backend."""

import json
from pathlib import Path

from hebbline.serve.triton.backend import open_backend

ARTIFACT = "artifact"


class TritonPythonModel:
    """Triton calls `initialize` once, `execute` with new requests, and `finalize` when it unloads the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artifact beside this file; an exception fails the load of `llm` with its message."""
        config = json.loads(args["model_config"])
        self._backend = open_backend(Path(__file__).parent / ARTIFACT, config, args["model_name"])

    def execute(self, requests: list) -> None:
        """Take requests over and return at once; responses follow from the backend's own threads."""
        self._backend.execute(requests)

    def finalize(self) -> None:
        """End the open requests and the threads."""
        self._backend.close()
