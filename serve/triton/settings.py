"""The parameters of the model's `config.pbtxt`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from ...artifacts import KV_FORMATS, InputError, KvFormat

MODEL_NAME = "llm"
BATCHED_NAME = "ensemble"
"""The same model for clients that put a batch of one before every shape; TensorRT-LLM's backend calls it so."""
CONTROL_NAME = "model-control"
"""What loads and unloads further models of a repository; it is there where the repository has a list of them."""
LOADER_NAME = "model-loader"
"""What does that for `model-control`, in a process that may die of it."""
DRAFT = "draft"
"""The directory of a model's draft, beside that of its artifact."""
MAX_SLOTS = 1024
AS_EXPORTED = "as-exported"


@dataclass(frozen=True)
class Settings:
    """What `config.pbtxt` sets; wrong values raise InputError with the parameter's name.

    Attributes:
        slots: sequences that are generated at a time.
        threads: of the runtime; 0 takes one for each physical core.
        max_waiting: requests that may wait for a slot.
        drain_seconds: what open requests get to finish when the server shuts down.
        kv_cache: how keys and values are kept: "float32", "bfloat16" or "int8", or "as-exported" for what the artifact
            was exported with.
        cache_bytes: the most memory that they take, where the runner keeps them in blocks; 0: as much as all slots with
            a whole context, but at most a quarter of the free memory.
    """

    slots: int = 8
    threads: int = 0
    max_waiting: int = 64
    drain_seconds: int = 5
    kv_cache: str = AS_EXPORTED
    cache_bytes: int = 0

    def __post_init__(self) -> None:
        for name, minimum, maximum in (
            ("slots", 1, MAX_SLOTS),
            ("threads", 0, 4096),
            ("max_waiting", 0, 1 << 20),
            ("drain_seconds", 0, 3600),
            ("cache_bytes", 0, 1 << 50),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
                raise InputError(f"{name} must be an integer from {minimum} to {maximum}, not {value!r}")
        if self.kv_cache not in (AS_EXPORTED, *KV_FORMATS):
            raise InputError(f"kv_cache must be one of {', '.join((AS_EXPORTED, *KV_FORMATS))}, not {self.kv_cache!r}")

    @property
    def kv(self) -> KvFormat | None:
        """The format of keys and values that was asked for; None: as exported."""
        return None if self.kv_cache == AS_EXPORTED else cast(KvFormat, self.kv_cache)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Settings":
        """From the model configuration as Triton hands it over; raises InputError for an unknown parameter."""
        values: dict[str, Any] = {}
        for name, entry in config.get("parameters", {}).items():
            if name not in cls.__dataclass_fields__:
                raise InputError(f"config.pbtxt: there is no parameter '{name}'")
            text = entry["string_value"]
            try:
                values[name] = text if name == "kv_cache" else int(text)
            except ValueError as error:
                raise InputError(f"config.pbtxt: parameter '{name}' is no integer: {error}") from error
        return cls(**values)

    def as_parameters(self) -> dict[str, str]:
        """The parameters' names and values as `config.pbtxt` holds them."""
        return {name: str(value) for name, value in asdict(self).items()}
