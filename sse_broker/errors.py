"""The exception tree: what can go wrong, in words for the caller, each with its HTTP status. Knows nothing else."""


class BrokerError(Exception):
    """Say in one sentence what is wrong; `status` is the HTTP status that answers it."""

    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(BrokerError):
    """A parameter is missing, malformed or impossible."""

    status = 400


class Unauthorized(BrokerError):
    """No credentials, or credentials that are wrong, expired or revoked."""

    status = 401


class Forbidden(BrokerError):
    """The credentials are good, but not for this."""

    status = 403


class MethodNotAllowed(BrokerError):
    """The endpoint exists, the method does not."""

    status = 405


class PayloadTooLarge(BrokerError):
    """The body is longer than `server.max_body_bytes`."""

    status = 413


class UnsupportedMedia(BrokerError):
    """The body's content type is none that the API takes."""

    status = 415


class TooManyRequests(BrokerError):
    """A limit is reached; the caller may come back later."""

    status = 429

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(BrokerError):
    """Transient trouble: the backend is out of reach, or this instance is draining or full."""

    status = 503

    def __init__(self, message: str, retry_after_seconds: int = 2) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ConfigError(BrokerError):
    """The configuration can not be used; the message names file, table and key."""


class StartError(BrokerError):
    """The program can not start although its configuration is good (port taken, Redis out of reach)."""
