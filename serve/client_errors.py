"""What can go wrong between a client and the server, each as a type of its own."""

from ..artifacts import CheckError


class ServerBusyError(CheckError):
    """As many requests wait as may; the same one can succeed later."""


class ServerUnavailableError(CheckError):
    """No server answers, or it shuts down or ended while it worked; it may be back in seconds."""


class NoModelError(CheckError):
    """The server has no model of this name, or does not have it loaded."""


class DeadlineError(CheckError):
    """The answer was not whole when the time for it was over."""
