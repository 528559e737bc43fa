"""The parameters of the model's `config.pbtxt`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...artifacts import InputError

MODEL_NAME = "llm"
MAX_SLOTS = 1024


@dataclass(frozen=True)
class Settings:
    """What `config.pbtxt` sets; wrong values raise InputError with the parameter's name.

    Attributes:
        slots: sequences that are generated at a time.
        threads: of the runtime; 0 takes one for each physical core.
        max_waiting: requests that may wait for a slot.
        drain_seconds: what open requests get to finish when the server shuts down.
    """

    slots: int = 8
    threads: int = 0
    max_waiting: int = 64
    drain_seconds: int = 5

    def __post_init__(self) -> None:
        for name, minimum, maximum in (
            ("slots", 1, MAX_SLOTS),
            ("threads", 0, 4096),
            ("max_waiting", 0, 1 << 20),
            ("drain_seconds", 0, 3600),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
                raise InputError(f"{name} must be an integer from {minimum} to {maximum}, not {value!r}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Settings":
        """From the model configuration as Triton hands it over; raises InputError for an unknown parameter."""
        values: dict[str, int] = {}
        for name, entry in config.get("parameters", {}).items():
            if name not in cls.__dataclass_fields__:
                raise InputError(f"config.pbtxt: there is no parameter '{name}'")
            try:
                values[name] = int(entry["string_value"])
            except ValueError as error:
                raise InputError(f"config.pbtxt: parameter '{name}' is no integer: {error}") from error
        return cls(**values)

    def as_parameters(self) -> dict[str, str]:
        """The parameters' names and values as `config.pbtxt` holds them."""
        return {name: str(value) for name, value in asdict(self).items()}
