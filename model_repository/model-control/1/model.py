"""The model-control as Triton's Python backend loads it; all of it is in hebbline.serve.triton.control."""

from pathlib import Path

from hebbline.serve.triton.control import ModelControl


class TritonPythonModel:
    """Triton calls `initialize` once, `execute` with requests, and `finalize` when it unloads the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Begin to follow the repository's list."""
        self._control = ModelControl(Path(__file__).parents[2])

    def execute(self, requests: list) -> list:
        """Tell what has become of a model."""
        return self._control.answer(requests)

    def finalize(self) -> None:
        """End the thread."""
        self._control.close()
