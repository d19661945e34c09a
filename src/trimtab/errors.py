"""The errors that trimtab raises on purpose. Nothing else should ever reach a user."""

from __future__ import annotations


class TrimtabError(Exception):
    """Base of every error raised on purpose."""


class UserError(TrimtabError):
    """Something the caller can mend. `str(error)` is one line: what was wrong and what to do.

    The command line prints it on stderr and exits with status 2; the server answers 400.
    """


class CheckpointError(UserError):
    """A model directory or file is missing, damaged, inconsistent or of an unknown kind."""


class ConfigError(UserError):
    """A combination of settings that cannot work."""


class RequestError(UserError):
    """A request that can never be served.

    `param` names the offending request field and `code` is the machine-readable reason in the
    OpenAI error object (for instance `context_length_exceeded`); both may be None.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class EngineDeadError(TrimtabError):
    """The engine process is gone; requests in flight could not be completed."""


class FatalRequestError(EngineDeadError):
    """The engine process ended whenever it ran this request alone: it must not be sent again."""


class QueueFullError(TrimtabError):
    """The waiting queue is at its limit; try again in `retry_after` seconds (HTTP 429)."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after
