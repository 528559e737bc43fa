"""One runner per runtime, behind the `Runner` protocol."""

from .runner import Runner

__all__ = ["Runner"]
