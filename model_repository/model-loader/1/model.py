"""The model-loader as Triton's Python backend loads it; all of it is in hebbline.serve.triton.errand."""

import json

from hebbline.serve.triton.errand import Errand, refuse


class TritonPythonModel:
    """Triton calls `initialize` once. The process ends soon after."""

    def initialize(self, args: dict[str, str]) -> None:
        """Begin the errand."""
        Errand.from_config(json.loads(args["model_config"])).do()

    def execute(self, requests: list) -> list:
        """Refuse requests: clients have nothing to ask here."""
        return refuse(requests)
