"""Logs: the broker log, the error log and the access log, each in a file or on a standard stream.

Owns the handlers that this program adds to Python's logging and nothing else there. Must not know what is logged, nor how
lines are written.
"""

import io
import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from sse_broker.config import ServerConfig
from sse_broker.config_checks import BadValue
from sse_broker.errors import ConfigError
from sse_broker.log_lines import ACCESS_LINE, LINE, LineHandler, one_line, open_file

BROKER_LOGGER = "sse_broker"
ACCESS_LOGGER = "aiohttp.access"


class LogFiles:
    """Hold the handlers of one run, from `setup` to `close`."""

    __slots__ = ("_installed", "_levels")

    def __init__(self) -> None:
        self._installed: list[tuple[logging.Logger, LineHandler]] = []
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

    def _install(self, logger: logging.Logger, handler: LineHandler) -> None:
        logger.addHandler(handler)
        self._installed.append((logger, handler))

    def _adjust(self, logger: logging.Logger, level: int, *, propagate: bool = True) -> None:
        self._levels.append((logger, logger.level, logger.propagate))
        logger.setLevel(level)
        logger.propagate = propagate


def setup(server: ServerConfig, who: str = "") -> LogFiles:
    """Send logging where `server` says: requests to the access log, `sse_broker` at INFO to the broker log, warnings
    and errors of everything to the error log. `who` names this process in the latter two, where several share them.

    Raises: ConfigError for a file that can not be opened; nothing has changed then.
    """
    line = LINE.replace("%(name)s", f"{who} %(name)s") if who else LINE
    error, broker, access = _opened_all(
        ("server.error_log_path", server.error_log_path, sys.stderr, line),
        ("server.broker_log_path", server.broker_log_path, sys.stdout, line),
        ("server.access_log_path", server.access_log_path, sys.stdout, ACCESS_LINE),
    )
    files = LogFiles()
    files._adjust(logging.getLogger(BROKER_LOGGER), logging.INFO)
    files._adjust(logging.getLogger(ACCESS_LOGGER), logging.INFO if access else logging.CRITICAL + 1, propagate=False)
    if error:
        error.setLevel(logging.WARNING)
        files._install(logging.getLogger(), error)
    if broker:
        if error:
            error.ahead = broker
        if error and _same_place(server.broker_log_path, server.error_log_path):
            broker.addFilter(_below_warning)
        files._install(logging.getLogger(BROKER_LOGGER), broker)
    if access:
        files._install(logging.getLogger(ACCESS_LOGGER), access)
    return files


def _opened_all(*wanted: tuple[str, str, TextIO | None, str]) -> list[LineHandler | None]:
    handlers: list[LineHandler | None] = []
    try:
        for key, path, stream, line in wanted:
            handlers.append(_opened(key, path, stream, line))
    except ConfigError:
        for handler in filter(None, handlers):
            handler.close()
        raise
    return handlers


def _opened(key: str, path: str, stream: TextIO | None, line: str) -> LineHandler | None:
    """Return a handler for a path or else the stream, None where nobody would ever read (/dev/null, no console)."""
    if path in (os.devnull, "/dev/null") or (not path and stream is None):
        return None
    if path:
        try:
            return LineHandler(open_file(Path(path)), Path(path), line)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise BadValue(f"{key}: {one_line(path)} can not be opened for writing: {why}", key) from error
    assert stream is not None
    if isinstance(stream, io.TextIOWrapper):
        # A console of Windows, or a pipe under LANG=C, has no character for everything.
        stream.reconfigure(errors="backslashreplace")
    return LineHandler(stream, None, line)


def _same_place(broker_path: str, error_path: str) -> bool:
    if not broker_path or not error_path:
        return broker_path == error_path
    return os.path.realpath(broker_path) == os.path.realpath(error_path)


def _below_warning(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING
