# SPDX-License-Identifier: Apache-2.0
"""The exceptions that the command line turns into one line of text and an exit code."""

from __future__ import annotations

__all__ = ["DataError", "ImageError", "MissingExtraError", "ScrdFastError", "UnavailableError", "error_of", "reason_of"]


class ScrdFastError(Exception):
    """An error that its reader can mend: the command line prints its text alone and exits with `exit_code`."""

    exit_code = 2


class DataError(ScrdFastError):
    """A data set cannot be used. The text lists every problem that was found, one a line."""

    def __init__(self, source: object, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"{source}: " + ("\n  ".join(["", *problems]) if len(problems) > 1 else problems[0]))


class ImageError(ScrdFastError):
    """One image file cannot be read or used. `code` is a short fixed word for tables, the text is the reason.

    `refused`: it could perhaps be read, but a rule forbids it: too large, an unsafe name, another kind of study.
    """

    def __init__(self, code: str, reason: str, *, refused: bool = False) -> None:
        self.code, self.refused = code, refused
        super().__init__(reason)


class UnavailableError(ScrdFastError):
    """Something this machine lacks was asked for by name: a backend, a device, weights."""

    exit_code = 4


class MissingExtraError(UnavailableError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install this package with its [{extra}] extra")


def error_of(code: int, text: str) -> ScrdFastError:
    """The error of another process, by its exit code and text."""
    return (UnavailableError if code == UnavailableError.exit_code else ScrdFastError)(text)


def reason_of(error: Exception) -> str:
    """An error's text, of the system's without number and path."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
