"""Logs: which record goes where, one record one line, and files that are moved away."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sse_broker.config import ServerConfig
from sse_broker.errors import ConfigError
from sse_broker.log_lines import MAX_WAITING_LINES, HotLog, one_line
from sse_broker.logs import LogFiles, setup
from tests.waiting import until

BROKER = logging.getLogger("sse_broker.something")
ACCESS = logging.getLogger("aiohttp.access")
LIBRARY = logging.getLogger("asyncio")

Setup = Callable[..., LogFiles]


@pytest.fixture
def start() -> Iterator[Setup]:
    """A function that sets logging up from keys of `[server]`; undone at the end."""
    started: list[LogFiles] = []

    def run(who: str = "", **paths: object) -> LogFiles:
        started.append(setup(ServerConfig(**{f"{name}_log_path": str(path) for name, path in paths.items()}), who))
        return started[-1]

    yield run
    for files in reversed(started):
        files.close()


def say_everything() -> None:
    """Log one record of each kind."""
    BROKER.debug("broker debug")
    BROKER.info("broker info")
    BROKER.error("broker error")
    LIBRARY.info("library info")
    LIBRARY.warning("library warning")
    ACCESS.info("request")


def messages(text: str) -> list[str]:
    """Return what follows the time in each line."""
    return [line.split(" ", 2)[2] for line in text.splitlines()]


def test_each_log_has_its_file(start: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(broker=tmp_path / "broker", error=tmp_path / "error", access=tmp_path / "access")
    say_everything()
    assert messages((tmp_path / "broker").read_text()) == [
        "INFO sse_broker.something: broker info",
        "ERROR sse_broker.something: broker error",
    ]
    assert messages((tmp_path / "error").read_text()) == [
        "ERROR sse_broker.something: broker error",
        "WARNING asyncio: library warning",
    ]
    assert messages((tmp_path / "access").read_text()) == ["request"]
    assert capsys.readouterr() == ("", "")


def test_without_paths_the_standard_streams_are_used_and_an_error_shows_once(
    start: Setup, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    say_everything()
    out, err = capsys.readouterr()
    assert messages(out) == ["INFO sse_broker.something: broker info", "request"]
    assert messages(err) == ["ERROR sse_broker.something: broker error", "WARNING asyncio: library warning"]


def test_an_error_shows_once_in_a_file_that_two_logs_share(start: Setup, tmp_path: Path) -> None:
    start(broker=tmp_path / "log", error=tmp_path / "." / "log", access=tmp_path / "access")
    say_everything()
    assert messages((tmp_path / "log").read_text()) == [
        "INFO sse_broker.something: broker info",
        "ERROR sse_broker.something: broker error",
        "WARNING asyncio: library warning",
    ]


def test_an_error_shows_in_the_broker_file_and_on_the_terminal(
    start: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(broker=tmp_path / "broker")
    BROKER.error("broker error")
    assert "broker error" in (tmp_path / "broker").read_text()
    assert capsys.readouterr().err.count("broker error") == 1


def test_a_file_is_continued_and_not_begun_anew(start: Setup, tmp_path: Path) -> None:
    (tmp_path / "broker").write_text("before\n")
    start(broker=tmp_path / "broker")
    BROKER.info("after")
    before, after = (tmp_path / "broker").read_text().splitlines()
    assert before == "before"
    assert after.endswith("after")


def test_a_rotated_file_is_let_go_on_reopen(start: Setup, tmp_path: Path) -> None:
    names = ("broker", "error", "access")
    files = start(**{name: tmp_path / name for name in names})
    say_everything()
    for name in names:
        (tmp_path / name).rename(tmp_path / f"{name}.1")
    BROKER.error("after the rename")
    assert not (tmp_path / "error").exists()
    assert "after the rename" in (tmp_path / "error.1").read_text()
    files.reopen()
    BROKER.error("after the reopening")
    ACCESS.info("after the reopening")
    for name in names:
        assert messages((tmp_path / name).read_text()) == [
            "after the reopening" if name == "access" else "ERROR sse_broker.something: after the reopening"
        ]
        assert "after the reopening" not in (tmp_path / f"{name}.1").read_text()


def test_reopening_leaks_no_descriptor(start: Setup, tmp_path: Path) -> None:
    files = start(broker=tmp_path / "broker", error=tmp_path / "error", access=tmp_path / "access")
    before = set(os.listdir("/dev/fd"))
    for _ in range(20):
        files.reopen()
    assert len(os.listdir("/dev/fd")) == len(before)


def test_a_file_that_can_not_be_reopened_is_kept(start: Setup, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    files = start(broker=tmp_path / "logs" / "broker", error=tmp_path / "error", access=os.devnull)
    (tmp_path / "logs").rename(tmp_path / "old")
    files.reopen()
    BROKER.info("still here")
    assert "still here" in (tmp_path / "old" / "broker").read_text()
    assert "logs/broker can not be opened again" in (tmp_path / "error").read_text()


def test_standard_streams_survive_reopening(start: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    start().reopen()
    say_everything()
    assert len(messages(capsys.readouterr().out)) == 2


@pytest.mark.parametrize("name", ["broker", "error", "access"])
def test_a_file_that_can_not_be_opened_stops_the_start_and_changes_nothing(name: str, tmp_path: Path) -> None:
    def state() -> list[object]:
        loggers = [logging.getLogger(), logging.getLogger("sse_broker"), ACCESS]
        return [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]

    before = state()
    paths = {f"{other}_log_path": str(tmp_path / other) for other in ("broker", "error", "access")}
    paths[f"{name}_log_path"] = str(tmp_path / "none" / "log")
    message = f"^server.{name}_log_path: {tmp_path}/none/log can not be opened for writing: No such file or directory$"
    with pytest.raises(ConfigError, match=message):
        setup(ServerConfig(**paths))
    assert state() == before


@pytest.mark.parametrize("path", ["\0", "a\nb/c", "/"])
def test_an_impossible_path_is_refused_in_one_line(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^server\.error_log_path: [^\n]* can not be opened for writing: [^\n]*$"):
        setup(ServerConfig(error_log_path=path))


def test_closing_leaves_logging_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(), logging.getLogger("sse_broker"), ACCESS]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    files = setup(ServerConfig(broker_log_path=str(tmp_path / "broker")))
    assert before != [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    files.close()
    files.close()
    assert before == [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    say_everything()
    assert (tmp_path / "broker").read_text() == ""
    assert capsys.readouterr() == ("", "")


def test_a_line_break_in_a_name_forges_no_line(start: Setup, tmp_path: Path) -> None:
    start(broker=tmp_path / "broker")
    BROKER.info("stream of %s opened", "x\r\n2024-01-01 ERROR forged\x1b[31m\u2028\ud800")
    (line,) = (tmp_path / "broker").read_bytes().splitlines()
    assert line.endswith(rb"stream of x\r\n2024-01-01 ERROR forged\x1b[31m\u2028\ud800 opened")


def test_readable_characters_stay_as_they_are(start: Setup, tmp_path: Path) -> None:
    start(broker=tmp_path / "broker")
    BROKER.info("Grüße 🎉")
    assert (tmp_path / "broker").read_text("utf-8").endswith("Grüße 🎉\n")


def test_a_traceback_follows_its_line(start: Setup, tmp_path: Path) -> None:
    start(error=tmp_path / "error", broker=os.devnull)
    try:
        raise ValueError("because")
    except ValueError:
        BROKER.exception("failed")
    lines = (tmp_path / "error").read_text().splitlines()
    assert lines[0].endswith("ERROR sse_broker.something: failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: because"


def test_devnull_takes_no_records_at_all(start: Setup) -> None:
    start(access=os.devnull)
    assert not ACCESS.isEnabledFor(logging.CRITICAL)


def test_a_full_disk_is_said_once_and_not_raised(start: Setup, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    start(broker="/dev/full", access=os.devnull)
    for _ in range(3):
        BROKER.info("x")
    assert capsys.readouterr().err == "sse-broker: log /dev/full can not be written: No space left on device\n"


def test_a_stream_without_the_characters_gets_escapes(start: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    start()
    BROKER.info("ü 🎉")
    console.flush()
    assert console.buffer.getvalue().rstrip().endswith(b"\xfc \\U0001f389")  # type: ignore[attr-defined]


def test_a_program_without_a_console_runs_without_it(start: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    start()
    say_everything()


def test_one_line_escapes_only_what_needs_it() -> None:
    assert one_line("a\tb\nc\\d é") == "a\\tb\\nc\\d é"


async def test_lines_wait_for_others_and_share_a_write(start: Setup, tmp_path: Path) -> None:
    start(broker=tmp_path / "broker")
    for number in range(MAX_WAITING_LINES - 1):
        BROKER.info("%d", number)
    assert (tmp_path / "broker").read_text() == ""
    await until(lambda: messages((tmp_path / "broker").read_text()), what="the lines")
    assert len(messages((tmp_path / "broker").read_text())) == MAX_WAITING_LINES - 1
    for number in range(MAX_WAITING_LINES):
        BROKER.info("%d", number)
    assert len(messages((tmp_path / "broker").read_text())) == 2 * MAX_WAITING_LINES - 1


@pytest.mark.parametrize("error", ["error", "broker"])
async def test_an_error_does_not_wait_and_stands_behind_what_waits(start: Setup, tmp_path: Path, error: str) -> None:
    start(broker=tmp_path / "broker", error=tmp_path / error)
    BROKER.info("before")
    LIBRARY.error("failure")
    assert messages((tmp_path / "broker").read_text())[0] == "INFO sse_broker.something: before"
    assert messages((tmp_path / error).read_text())[-1] == "ERROR asyncio: failure"


async def test_what_waits_is_written_at_the_end_and_on_reopening(start: Setup, tmp_path: Path) -> None:
    files = start(broker=tmp_path / "broker")
    BROKER.info("first")
    files.reopen()
    assert len(messages((tmp_path / "broker").read_text())) == 1
    BROKER.info("second")
    files.close()
    assert len(messages((tmp_path / "broker").read_text())) == 2


@pytest.mark.parametrize(("who", "name"), [("", "sse_broker.something"), ("worker 1", "worker 1 sse_broker.something")])
def test_the_short_way_writes_what_the_long_one_does(
    start: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, name: str
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # with those of pytest there is no short way
    start(who, broker=tmp_path / "broker", access=tmp_path / "access")
    for logger in (BROKER, ACCESS):
        for log in (logger, HotLog(logger)):
            log.info("user %s\n, 5%% of %d", "ann", 5)
            logging.disable()
            log.info("not this")
            logging.disable(logging.NOTSET)
    for file, line in (("broker", f"INFO {name}: user ann\\n, 5% of 5"), ("access", "user ann\\n, 5% of 5")):
        first, second = (tmp_path / file).read_text().splitlines()
        assert first.split(" ", 2)[2] == second.split(" ", 2)[2] == line
        assert len(first) == len(second)


def test_the_short_way_reaches_other_handlers_too(
    start: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(broker=tmp_path / "broker")
    with caplog.at_level(logging.INFO):
        HotLog(BROKER).info("user %s", "ann")
    assert [(record.message, record.funcName) for record in caplog.records] == [
        ("user ann", "test_the_short_way_reaches_other_handlers_too")
    ]
    assert messages((tmp_path / "broker").read_text()) == ["INFO sse_broker.something: user ann"]
