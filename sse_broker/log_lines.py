"""How log lines are written: one record one line, whatever a client put into it, and many lines in one write. It owns the
handler that does so, and the short way to it for lines that come with each stream and request. Must not know what is
logged, nor into which logger the handler goes.
"""

import asyncio
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

# How long a line below WARNING may wait for others, so that they share a write: at a thousand connects a second a write
# for each of three lines was a tenth of the work.
FLUSH_SECONDS = 0.05
MAX_WAITING_LINES = 500

# Every line begins with the time and ends with the message.
LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
ACCESS_LINE = "%(asctime)s %(message)s"

_log = logging.getLogger(__name__)


def one_line(text: str) -> str:
    r"""Return the text with line breaks, control characters and half surrogate pairs written as escapes (\n, \x00)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class LineHandler(logging.Handler):
    """Write lines to a stream, or to a file that can be opened anew.

    Warnings and worse are written at once, with all that waits before them, so that a crash takes no line that explains
    it. Without a running event loop everything is. `ahead` is a handler whose lines have to be written before such ones.
    """

    ahead: "LineHandler | None" = None

    def __init__(self, stream: TextIO, path: Path | None, line: str) -> None:
        super().__init__()
        self.stream = stream
        self._path = path
        self._after_time = line.removeprefix("%(asctime)s")
        self._before_message: dict[str, str] = {}
        self._complained = False
        self._waiting: list[str] = []
        self._flushing_loop: asyncio.AbstractEventLoop | None = None
        self._second = 0
        self._second_text = ""
        self.setFormatter(_LineFormatter(line))

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record of logging's."""
        try:
            self._take(self.format(record) + "\n", at_once=record.levelno >= logging.WARNING)
        except Exception:
            self.handleError(record)

    def info(self, name: str, message: str) -> None:
        """Take a line at INFO that logger `name` says now, without a record."""
        now = time.time()
        second = int(now)
        with self.lock:  # type: ignore[union-attr]  # a handler has one
            if second != self._second:
                self._second = second
                self._second_text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
            when = f"{self._second_text},{int((now - second) * 1000):03d}"
            between = self._before_message.get(name)
            if between is None:
                between = self._after_time % {"levelname": "INFO", "name": name, "message": ""}
                self._before_message[name] = between
            self._take(f"{when}{between}{one_line(message)}\n", at_once=False)

    def flush(self) -> None:
        """Write what waits."""
        with self.lock:  # type: ignore[union-attr]
            self._flushing_loop = None
            text, self._waiting = "".join(self._waiting), []
            try:
                if text:
                    self.stream.write(text)
                self.stream.flush()
            except OSError as error:
                self._complain(error)
            except ValueError:
                pass  # the stream was closed by whoever owns it: nobody reads it any more

    def _take(self, line: str, *, at_once: bool) -> None:
        self._waiting.append(line)
        if at_once or len(self._waiting) >= MAX_WAITING_LINES:
            if self.ahead is not None:
                self.ahead.flush()
            self.flush()
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._flushing_loop is not loop:
            self._flushing_loop = loop
            loop.call_later(FLUSH_SECONDS, self.flush)

    def reopen(self) -> None:
        """Go on in a file opened anew; one that can not be opened is kept as it is."""
        if self._path is None:
            return
        try:
            fresh = open_file(self._path)
        except OSError as error:
            _log.warning("log file %s can not be opened again, the old one stays: %s", self._path, error.strerror)
            return
        self.flush()
        former, self.stream = self.stream, fresh
        self._complained = False
        with suppress(OSError):
            former.close()

    def close(self) -> None:
        """Write what waits, and close the file."""
        self.flush()
        super().close()
        if self._path is not None:
            with suppress(OSError):
                self.stream.close()

    def _complain(self, error: OSError) -> None:
        """Say once that a log can not be written (disk full, reader gone); a broker goes on without its log."""
        if not self._complained:
            self._complained = True
            with suppress(OSError, AttributeError):
                sys.stderr.write(f"sse-broker: log {self._path or 'stream'} can not be written: {error.strerror}\n")


class _LineFormatter(logging.Formatter):
    """Keep a record in one line: a device's name with a line break in it must not forge a second one. Tracebacks follow
    in lines of their own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


class HotLog:
    """A logger's short way for lines at INFO that come with each stream or request: 4 µs where `Logger.info` takes 24, which
    looks for its caller and makes a record. Wherever a handler that is none of ours listens, it is `Logger.info`.
    """

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def info(self, text: str, *args: object) -> None:
        """Log `text % args`."""
        logger: logging.Logger | None = self._logger
        if not self._logger.isEnabledFor(logging.INFO):
            return
        ours: list[LineHandler] = []
        while logger is not None:
            for handler in logger.handlers:
                if handler.level > logging.INFO:
                    continue
                if type(handler) is not LineHandler:
                    self._logger.info(text, *args, stacklevel=2)
                    return
                ours.append(handler)
            logger = logger.parent if logger.propagate else None
        for handler in ours:
            handler.info(self._logger.name, text % args)


def open_file(path: Path) -> TextIO:
    """Open a log for appending. Raises: OSError."""
    # "a" so that several workers, and logrotate's copytruncate, can share a file: what is written goes to its end at once.
    return path.open("a", encoding="utf-8", errors="backslashreplace")
