"""The program: its arguments, its exit codes and the one line that says why it ended. Run as people run it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from sse_broker.cli import main
from sse_broker.config import SYSTEM_FILE
from sse_broker.version import VERSION
from tests.broker_process import ROOT, BrokerProcess
from tests.processes import ChildProcess
from tests.waiting import free_port, until

PROGRAM = (sys.executable, "-X", "dev", "-m", "sse_broker")


def environment(**variables: str) -> dict[str, str]:
    """Return an environment without configuration but the one given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SSE_BROKER_")}
    return kept | {"PYTHONPATH": str(ROOT)} | variables


def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, which it must reach by itself."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        env=dict(env or environment()),
        check=False,
    )


def complaint(result: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the one line with which the program failed, and check that there is nothing else."""
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("sse-broker: ")
    return line.removeprefix("sse-broker: ")


# Without a server


@pytest.mark.parametrize("option", ["-v", "--version"])
def test_the_version(option: str) -> None:
    result = run(option)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"sse-broker {VERSION}\n", "")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_names_every_option(option: str) -> None:
    result = run(option)
    assert (result.returncode, result.stderr) == (0, "")
    for word in ("-c", "--config", "--host", "--port", "--version", "SSE_BROKER_", "/etc/sse-broker/config.toml"):
        assert word in result.stdout.replace("\n", "").replace(" ", ""), word


@pytest.mark.parametrize(
    "arguments", [["--prot", "1"], ["--port"], ["--port", "http"], ["extra"], ["--conf", "x"], ["--port", "1\n2"]]
)
def test_wrong_arguments_are_one_line(arguments: list[str]) -> None:
    assert complaint(run(*arguments), 2).endswith("(see sse-broker --help)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nport = 'x'", "server.port must be a whole number, not text"),
        ("[server]\nprot = 1", "unknown key server.prot; did you mean server.port?"),
        ("[server\n", "is not TOML: "),
        ("[server]\nhost = '0.0.0.0'", "jwt.secret is not set"),
        ("[redis]\naddrs = ['127.0.0.1:6379']", "jwt.secret is not set"),
        ("[server]\nworkers = 2", "server.workers = 2 needs redis.addrs"),
    ],
)
def test_a_bad_file_is_one_line_and_code_2(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert complaint(run("-c", str(file)), 2).startswith(f"{file}: {message}")


def test_a_missing_file_is_code_2(tmp_path: Path) -> None:
    assert complaint(run("--config", f"{tmp_path}/none"), 2) == f"{tmp_path}/none: there is no such file"


def test_a_path_with_a_line_break_is_still_one_line(tmp_path: Path) -> None:
    assert complaint(run("-c", f"{tmp_path}/a\nb\x1b[31m"), 2).endswith(r"\x1b[31m: there is no such file")


def test_a_bad_variable_and_a_bad_option_are_code_2() -> None:
    assert complaint(run(env=environment(SSE_BROKER_SERVER_PORT="x")), 2).startswith("SSE_BROKER_SERVER_PORT: ")
    assert complaint(run(env=environment(SSE_BROKER_PROT="x")), 2).startswith("SSE_BROKER_PROT: unknown variable")
    assert complaint(run("--port", "65536"), 2) == "--port: server.port must be 0 to 65535, not 65536"
    assert complaint(run("--host", "0.0.0.0"), 2).startswith("--host: jwt.secret is not set")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[server]\nbroker_log_path = '/none/such'",
            "server.broker_log_path: /none/such can not be opened for writing: ",
        ),
        (
            "[server]\ntls_cert = '/none'\ntls_key = '/none'",
            "server.tls_cert /none and server.tls_key /none can not be used: ",
        ),
        ("[jwt]\npublic_keys = ['/none.pem']", "jwt.public_keys: /none.pem can not be read: "),
    ],
)
def test_a_value_that_proves_bad_when_it_is_used_is_told_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert complaint(run("-c", str(file), "--port", "0"), 2).startswith(f"{file}: {message}")


def test_a_log_that_can_not_be_written_is_code_2(tmp_path: Path) -> None:
    message = complaint(run("--port", "0", env=environment(SSE_BROKER_SERVER_ERROR_LOG_PATH=f"{tmp_path}/none/log")), 2)
    assert message.startswith("SSE_BROKER_SERVER_ERROR_LOG_PATH: server.error_log_path: ")


@pytest.mark.parametrize(("error", "code"), [("KeyboardInterrupt", 0), ("ZeroDivisionError", 1)])
def test_what_nobody_expected_is_one_line(
    error: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback shows only in Python's development mode."""
    import sse_broker.server

    def fail(*arguments: object) -> None:
        raise {"KeyboardInterrupt": KeyboardInterrupt, "ZeroDivisionError": ZeroDivisionError}[error]("two\nlines")

    monkeypatch.setattr(sse_broker.server, "run", fail)
    flags = {name: getattr(sys.flags, name) for name in dir(sys.flags) if not name.startswith("_")}
    monkeypatch.setattr(sys, "flags", SimpleNamespace(**flags | {"dev_mode": False}))
    assert main(["--port", "0"]) == code
    assert capsys.readouterr().err == ("sse-broker: unexpected ZeroDivisionError: two lines\n" if code else "")


def test_help_needs_no_server() -> None:
    """It answers at once, without loading the web framework."""
    code = (
        "import sys; from sse_broker.cli import main; sys.argv = ['x', '-v']\ntry: main()\nfinally: print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, env=environment(), check=False
    )
    assert result.returncode == 0
    assert not {"aiohttp", "redis", "jwt"} & set(result.stdout.split())


# With a server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_with_code_0(number: signal.Signals) -> None:
    broker = BrokerProcess()
    try:
        await broker.start()
        broker.process.signal(number)
        assert await broker.wait() == 0
        broker.assert_clean_output()
    finally:
        await broker.discard()


async def test_options_win_over_the_file(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "config.toml").write_text('[server]\nhost = "192.0.2.1"\nport = 1\n')
    options = ["-c", "config.toml", "--host", "127.0.0.1", "--port", str(port)]
    process = ChildProcess([*PROGRAM, *options], tmp_path / "output", env=environment())
    try:
        await until(
            lambda: f"demo page: http://127.0.0.1:{port}/demo" in process.text(), seconds=20, what="the address"
        )
    finally:
        code, _ = await process.terminate()
    assert code == 0


@pytest.mark.skipif(SYSTEM_FILE.exists(), reason="this machine has a configuration of its own")
async def test_it_runs_without_any_configuration(tmp_path: Path) -> None:
    """It says where it is, and that its secret is a random one."""
    process = ChildProcess([*PROGRAM, "--port", "0"], tmp_path / "output", env=environment())
    try:
        await until(
            lambda: "demo page: http://127.0.0.1:" in process.text(), seconds=20, what="the demo page's address"
        )
        assert "random secret" in process.text()
    finally:
        code, _ = await process.terminate()
    assert code == 0


async def test_a_taken_port_is_one_line_and_code_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = complaint(run("--port", str(port)), 1)
    assert str(port) in message


async def test_redis_out_of_reach_is_one_line_and_code_1(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "config.toml"
    file.write_text(f'[redis]\naddrs = ["127.0.0.1:{port}"]\n[jwt]\nsecret = "d2f0c1b7a95e48336b8f7e1c0a4d9b52"\n')
    message = complaint(run("-c", str(file), "--port", "0"), 1)
    assert f"127.0.0.1:{port}" in message


async def test_sighup_reopens_the_logs(tmp_path: Path) -> None:
    paths = {f"{name}_log_path": str(tmp_path / name) for name in ("broker", "access", "error")}
    async with BrokerProcess({"server": paths}) as broker, broker.api() as api:
        await api.info()
        await until(lambda: "/info" in (tmp_path / "access").read_text(), what="the request in the log")
        for name in ("broker", "access", "error"):
            (tmp_path / name).rename(tmp_path / f"{name}.1")
        broker.process.signal(signal.SIGHUP)
        await until(lambda: (tmp_path / "access").exists(), what="a new file")
        await api.info()
        await until(lambda: "/info" in (tmp_path / "access").read_text(), what="the request in the new file")
        assert (tmp_path / "access.1").read_text().count("/info") == 1
        assert broker.stderr_text() == ""


async def test_no_token_and_no_data_in_any_log() -> None:
    async with BrokerProcess() as broker:
        token = broker.mint("u", "d")
        async with broker.client("u", "d") as client:
            async with broker.api() as api:
                await api.request("GET", "/send?uid=u&data=sesame")
            assert (await client.next_frame()).data == "sesame"
        assert token.split(".")[2] not in broker.stderr_text()
        assert "sesame" not in broker.stderr_text()
        await until(
            lambda: re.search(r'"GET /events\S* HTTP/1.1" 200', broker.stderr_text()), what="the access log's line"
        )


def test_a_reader_of_the_output_that_leaves_does_not_change_the_end() -> None:
    """`sse-broker | head -1`."""
    process = subprocess.Popen(
        [*PROGRAM, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout is not None
        while "demo page" not in process.stdout.readline():
            pass
        process.stdout.close()
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        _, errors = process.communicate()
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
