"""Logs: the broker log, the error log and the access log, each in a file or on a standard stream.

Owns the handlers that this program adds to Python's logging and nothing else there. Must not know what is logged; only
that one record is one line, whatever a client put into it.
"""

import io
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from sse_broker.config import ServerConfig
from sse_broker.errors import ConfigError

BROKER_LOGGER = "sse_broker"
ACCESS_LOGGER = "aiohttp.access"

_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_ACCESS_LINE = "%(asctime)s %(message)s"

_log = logging.getLogger(__name__)


class LogFiles:
    """Hold the handlers of one run, from `setup` to `close`."""

    __slots__ = ("_installed", "_levels")

    def __init__(self) -> None:
        self._installed: list[tuple[logging.Logger, _LogHandler]] = []
        self._levels: list[tuple[logging.Logger, int, bool]] = []

    def reopen(self) -> None:
        """Open every file anew, so that a rotated one is let go; a file that can not be opened is kept as it is."""
        for _, handler in self._installed:
            handler.reopen()

    def close(self) -> None:
        """Take the handlers away, close the files and leave Python's logging as it was found."""
        while self._installed:
            logger, handler = self._installed.pop()
            logger.removeHandler(handler)
            handler.close()
        while self._levels:
            logger, level, propagate = self._levels.pop()
            logger.setLevel(level)
            logger.propagate = propagate

    def _install(self, logger: logging.Logger, handler: "_LogHandler") -> None:
        logger.addHandler(handler)
        self._installed.append((logger, handler))

    def _adjust(self, logger: logging.Logger, level: int, *, propagate: bool = True) -> None:
        self._levels.append((logger, logger.level, logger.propagate))
        logger.setLevel(level)
        logger.propagate = propagate


def setup(server: ServerConfig) -> LogFiles:
    """Send logging where `server` says: requests to the access log, `sse_broker` at INFO to the broker log, warnings
    and errors of everything to the error log.

    Raises: ConfigError for a file that can not be opened; nothing has changed then.
    """
    error, broker, access = _opened_all(
        ("server.error_log_path", server.error_log_path, sys.stderr, _LINE),
        ("server.broker_log_path", server.broker_log_path, sys.stdout, _LINE),
        ("server.access_log_path", server.access_log_path, sys.stdout, _ACCESS_LINE),
    )
    files = LogFiles()
    files._adjust(logging.getLogger(BROKER_LOGGER), logging.INFO)
    files._adjust(logging.getLogger(ACCESS_LOGGER), logging.INFO if access else logging.CRITICAL + 1, propagate=False)
    if error:
        error.setLevel(logging.WARNING)
        files._install(logging.getLogger(), error)
    if broker:
        if error and _same_place(server.broker_log_path, server.error_log_path):
            broker.addFilter(_below_warning)
        files._install(logging.getLogger(BROKER_LOGGER), broker)
    if access:
        files._install(logging.getLogger(ACCESS_LOGGER), access)
    return files


def one_line(text: str) -> str:
    r"""Return the text with line breaks, control characters and half surrogate pairs written as escapes (\n, \x00)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class _LineFormatter(logging.Formatter):
    """Keep a record in one line: a device's name with a line break in it must not forge a second one. Tracebacks follow
    in lines of their own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


class _LogHandler(logging.StreamHandler[TextIO]):
    """Write lines to a stream, or to a file that can be opened anew."""

    def __init__(self, stream: TextIO, path: Path | None, line: str) -> None:
        super().__init__(stream)
        self._path = path
        self._complained = False
        self.setFormatter(_LineFormatter(line))

    def reopen(self) -> None:
        if self._path is None:
            return
        try:
            fresh = _open_file(self._path)
        except OSError as error:
            _log.warning("log file %s can not be opened again, the old one stays: %s", self._path, error.strerror)
            return
        former = self.setStream(fresh)
        self._complained = False
        if former is not None:
            with suppress(OSError):
                former.close()

    def close(self) -> None:
        super().close()
        if self._path is not None:
            with suppress(OSError):
                self.stream.close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that a log can not be written (disk full, reader gone); a broker goes on without its log."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._complained:
            self._complained = True
            with suppress(OSError, AttributeError):
                sys.stderr.write(f"sse-broker: log {self._path or 'stream'} can not be written: {error.strerror}\n")


def _opened_all(*wanted: tuple[str, str, TextIO | None, str]) -> "list[_LogHandler | None]":
    handlers: list[_LogHandler | None] = []
    try:
        for key, path, stream, line in wanted:
            handlers.append(_opened(key, path, stream, line))
    except ConfigError:
        for handler in filter(None, handlers):
            handler.close()
        raise
    return handlers


def _opened(key: str, path: str, stream: TextIO | None, line: str) -> _LogHandler | None:
    """Return a handler for a path or else the stream, None where nobody would ever read (/dev/null, no console)."""
    if path in (os.devnull, "/dev/null") or (not path and stream is None):
        return None
    if path:
        try:
            return _LogHandler(_open_file(Path(path)), Path(path), line)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{key}: {one_line(path)} can not be opened for writing: {why}") from error
    assert stream is not None
    if isinstance(stream, io.TextIOWrapper):
        # A console of Windows, or a pipe under LANG=C, has no character for everything.
        stream.reconfigure(errors="backslashreplace")
    return _LogHandler(stream, None, line)


def _open_file(path: Path) -> TextIO:
    # "a" so that several workers, and logrotate's copytruncate, can share a file: each line goes to its end at once.
    return path.open("a", encoding="utf-8", errors="backslashreplace")


def _same_place(broker_path: str, error_path: str) -> bool:
    if not broker_path or not error_path:
        return broker_path == error_path
    return os.path.realpath(broker_path) == os.path.realpath(error_path)


def _below_warning(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING
