"""The commands beside `serve`, run as a person runs them, against a real broker."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sse_broker import cli, config
from tests.broker_process import BrokerProcess
from tests.redis_servers import RedisServer
from tests.waiting import free_port, until

Run = Callable[..., Awaitable[BrokerProcess]]
KEY = "a-key-for-commands-1234567890"


async def _command(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "dev", "-m", "sse_broker", *arguments,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    assert process.returncode is not None
    assert b"Traceback" not in err
    assert b"ResourceWarning" not in err
    return process.returncode, out.decode(), err.decode()


async def test_send_and_listen_and_kick(run_broker: Run) -> None:
    """A frame with several lines goes from one command to another; the one who listens ends when kicked."""
    broker = await run_broker({"api": {"keys": [KEY]}})
    there = ["--url", broker.base_url, "--key", KEY]
    listening = asyncio.create_task(_command("listen", "ann", "--device", "shell", "--json", *there))
    async with broker.api(KEY) as api:

        async def is_online() -> bool:
            return bool((await api.info(uid="ann")).result["online"])

        await until(is_online, seconds=30, what="ann to listen")
    code, out, _ = await _command("send", "-", "--uid", "ann", "--event", "note", *there, stdin="é\nline 2".encode())
    assert (code, out) == (0, "addressed to 1 online devices\n")
    code, out, _ = await _command("info", "--uid", "ann", "--json", *there)
    assert json.loads(out)["devices"][0]["device_name"] == "shell"
    code, out, _ = await _command("kick", "--uid", "ann", "--data", "bye", *there)
    assert out == "kicked 1 devices\n"
    code, out, _ = await listening
    assert code == 0
    events = [json.loads(line) for line in out.splitlines()]
    assert [(event["event"], event["data"]) for event in events[1:]] == [
        ("note", "é\nline 2"),
        ("sys_kick_offline", "bye"),
    ]
    assert events[1]["id"] > 0


async def test_listen_goes_on_where_it_was_when_the_broker_restarts(run_broker: Run, redis_server: RedisServer) -> None:
    broker = await run_broker(redis=redis_server)
    listening = asyncio.create_task(
        _command("listen", "ann", "--device", "shell", "--count", "2", "--json", "--url", broker.base_url)
    )
    async with broker.api() as api:

        async def is_online() -> bool:
            return bool((await api.info(uid="ann")).result["online"])

        await until(is_online, seconds=30, what="ann to listen")
        await api.send("before", uid="ann")
    await broker.restart()
    async with broker.api() as api:
        await api.send("after", uid="ann")
    code, out, _ = await listening
    assert code == 0
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["data"] for event in events if event["id"]] == ["before", "after"]


async def test_what_is_refused_is_said_in_one_line(run_broker: Run) -> None:
    broker = await run_broker({"api": {"keys": [KEY]}})
    code, _, err = await _command("send", "x", "--url", broker.base_url, "--key", KEY)
    assert (code, err.count("\n")) == (1, 1)
    assert "--all" in err
    code, _, err = await _command("token", "ann", "--url", broker.base_url, "--key", "wrong")
    assert code == 1
    assert "API key" in err
    code, _, err = await _command("info", "--url", f"http://127.0.0.1:{free_port()}", "--key", KEY)
    assert (code, err.count("\n")) == (1, 1)
    assert "does not answer" in err


async def test_config_show_hides_secrets_and_says_where_a_value_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[jwt]\nsecret = "{"s" * 40}"\n[server]\nport = 9\n')
    code, out, _ = await _command("config", "show", "--json", "-c", str(file))
    assert code == 0
    values = json.loads(out)
    assert values["server.port"] == {"value": 9, "source": values["server.port"]["source"]}
    assert str(file) in values["server.port"]["source"]
    assert values["server.host"] == {"value": "127.0.0.1", "source": "default"}
    assert values["jwt.secret"]["value"] == "(set, hidden)"
    assert "ssss" not in out
    code, out, _ = await _command("config", "show", "-c", str(file))
    assert "ssss" not in out
    assert len(out.splitlines()) == len(values)


def test_config_show_hides_each_key_that_may_hold_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """All that the configuration itself keeps out of its `repr`; the names are written out once more on purpose."""
    names = ["api.keys", "api.named_keys", "jwt.secret", "jwt.previous_secrets", "redis.password"]
    assert config.secret_keys() == frozenset(names)
    secret = "k7Rw2pXn9vBq4TzLk7Rw2pXn9vBq4TzL"
    file = tmp_path / "config.toml"
    file.write_text("")
    for number, name in enumerate(names):
        value = f"shop:send:{secret}{number}" if name == "api.named_keys" else f"{secret}{number}"
        monkeypatch.setenv(f"SSE_BROKER_{name.replace('.', '_').upper()}", value)
    for arguments in ([], ["--json"]):
        assert cli.main(["config", "show", "-c", str(file), *arguments]) == 0
        shown = capsys.readouterr().out
        assert secret not in shown
        assert shown.count("(set, hidden)") == len(names)


async def test_config_init_writes_a_file_that_is_safe_to_run_with(tmp_path: Path) -> None:
    file = tmp_path / "new.toml"
    assert (await _command("config", "init", str(file)))[0] == 0
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    settings = config.load(file, {}, host="0.0.0.0")
    assert len(settings.jwt.secret) >= 32
    assert len(settings.api.keys) == 1
    assert file.read_text().count("#") > 20
    before = file.read_text()
    code, _, err = await _command("config", "init", str(file))
    assert code == 1
    assert "there already" in err
    assert file.read_text() == before


async def test_commands_use_the_first_key_that_is_configured_and_opens_their_endpoint(run_broker: Run) -> None:
    """Of the keys by name, too; one of which there is only the hash can not be used."""
    digest = hashlib.sha256(b"ops-ops-ops-7Rw2pXn9").hexdigest()
    named = [f"ops:*:sha256:{digest}", "watch:info:watch-7Rw2pXn9vBq4", "shop:token+send:shop-7Rw2pXn9vBq4"]
    broker = await run_broker({"api": {"named_keys": named}})
    there = ["-c", str(broker.config_file)]
    assert await _command("send", "x", "--all", *there) == (0, "addressed to 0 online devices\n", "")
    code, out, _ = await _command("info", "--json", *there)
    assert (code, json.loads(out)["device_count"]) == (0, 0)
    assert (await _command("token", "ann", *there))[0] == 0
    code, _, err = await _command("kick", "--uid", "ann", *there)
    assert (code, err) == (1, "sse-broker: the broker refuses: an API key is needed, as X-SSE-API-Key or Bearer\n")


def test_check_warns_of_open_endpoints_where_there_is_no_key_of_either_kind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "config.toml"
    for text, warns in (
        ("", True),
        ('[api]\nkeys = ["k7Rw2pXn9vBq4TzL"]\n', False),
        ('[api]\nnamed_keys = ["shop:send:k7Rw2pXn9vBq4TzL"]\n', False),
    ):
        file.write_text(text)
        assert cli.main(["check", "-c", str(file)]) == 0
        said = (
            "neither api.keys nor api.named_keys is set: anybody from this machine may send and kick"
            in capsys.readouterr().out
        )
        assert said == warns, text


async def test_check_looks_at_redis_and_gives_advice(tmp_path: Path, redis_server: RedisServer) -> None:
    file = tmp_path / "config.toml"
    head = f'[jwt]\nsecret = "{secrets.token_hex(32)}"\n[redis]\naddrs = ["{{}}"]\n'
    file.write_text(head.format(redis_server.addr))
    code, out, _ = await _command("check", "--json", "-c", str(file))
    texts = [finding["text"] for finding in json.loads(out)]
    assert code == 0
    assert any(text.startswith("Redis") and "answers" in text for text in texts)
    assert any("appendonly" in text for text in texts)
    file.write_text(head.format(f"127.0.0.1:{free_port()}"))
    code, out, _ = await _command("check", "-c", str(file))
    assert code == 1
    assert "wrong   Redis is out of reach" in out
    file.write_text("[server]\nprot = 1\n")
    code, _, err = await _command("check", "-c", str(file))
    assert (code, err.count("\n")) == (2, 1)
