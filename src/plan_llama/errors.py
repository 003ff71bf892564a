"""The one shape of everything this program refuses. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Sequence

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_NO_FIT = 3
EXIT_PROBLEM_FOUND = 4


def did_you_mean(word: str, names: Sequence[str]) -> str:
    """The start of a hint: `did you mean A or B; `, empty where no name is near."""
    import difflib

    near = difflib.get_close_matches(word, names, 2, 0.6)
    return f"did you mean {' or '.join(near)}; " if near else ""


class PlanLlamaError(Exception):
    """A refusal: what is wrong and where, and what to do about it, in one line on standard error.

    `exit_code` is what the process ends with (2 unless a subclass says otherwise).
    """

    exit_code = EXIT_USAGE

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def line(self) -> str:
        """The whole refusal as one printable line; control characters of foreign names are escaped."""
        text = f"{self.message}; {self.hint}" if self.hint else self.message
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(PlanLlamaError):
    """The words of the command line do not make sense."""


class InputError(PlanLlamaError):
    """A file or value that was given cannot be used."""


class ModelError(InputError):
    """A model is unknown, or its file cannot be read."""


class RemoteError(ModelError):
    """A server that cannot be reached (`status` None) or that answers with an error (its HTTP status).

    `code` is what a hub calls the error; `wait` is when to try again: "later", or "in 30 s".
    """

    def __init__(
        self, message: str, *, hint: str = "", status: int | None = None, code: str = "", wait: str = "later"
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.wait = wait

    @property
    def passing(self) -> bool:
        """Whether the same request may well succeed later: what is known from before still holds."""
        return self.status is None or self.status == 429 or self.status >= 500


class ProfileError(InputError):
    """A TOML profile does not say what it must."""
