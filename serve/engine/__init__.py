"""One runner per runtime, behind the `Runner` protocol."""

from .runner import MixedRunner, Runner, Segment

__all__ = ["MixedRunner", "Runner", "Segment"]
