"""What runs an artifact: sessions, caches, one runner for each runtime behind the `Runner` protocol, and its scores."""

from .runner import MixedRunner, Runner, Segment

__all__ = ["MixedRunner", "Runner", "Segment"]
