"""The errors a user can meet. A message names the field, file, layer or node, and what to do."""


class HebblineError(Exception):
    """Base of every expected failure; `exit_code` is what a command returns for it."""

    exit_code = 1


class CheckError(HebblineError):
    """A check that gates a result failed: parity, readiness, a served answer."""


class InputError(HebblineError):
    """The input is wrong and the user can put it right: a field, a file, an option, an address."""

    exit_code = 2


class DamagedArtifactError(InputError):
    """A published file is missing, was changed after publication, or cannot be read."""


class UnsupportedModelError(InputError):
    """The model is sound but of a kind that this stage does not handle."""


_LONGEST = 300


def one_line(error: Exception) -> str:
    """What an error of another library says, on one line and no longer than a reader takes in."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\u2026"
