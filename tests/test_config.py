"""Configuration: the defaults, which source wins, and what is safe by default."""

from __future__ import annotations

import dataclasses
import re
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest
import tomlkit

from sse_broker import config
from sse_broker.config import ApiConfig, Config, JwtConfig, RedisConfig, load, schema, with_random_secret
from sse_broker.errors import ConfigError
from tests.config_files import API_KEY, EXAMPLE, EXPOSED, SECRET, loaded, refusal


@pytest.fixture(autouse=True)
def no_system_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no configuration of this machine speak into a test."""
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "nowhere" / "config.toml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its configuration."""
    return tmp_path / "config.toml"


def test_the_defaults_are_those_of_the_contract() -> None:
    """Every line of the contract's table, written out once more on purpose."""
    assert dataclasses.asdict(load(environ={})) == {
        "server": {
            "host": "127.0.0.1",
            "port": 8080,
            "workers": 1,
            "access_log_path": "",
            "error_log_path": "",
            "broker_log_path": "",
            "trusted_proxies": (),
            "cors_origins": (),
            "drain_seconds": 10,
            "max_body_bytes": 1024 * 1024,
            "max_connections": 0,
            "admin_port": 0,
            "tls_cert": "",
            "tls_key": "",
            "trusted_networks": (),
        },
        "api": {"keys": (), "named_keys": (), "allow_anonymous": False, "parsed_keys": ()},
        "jwt": {
            "secret": "",
            "previous_secrets": (),
            "expire": 30,
            "public_keys": (),
            "jwks_url": "",
            "jwks_refresh": 300,
            "uid_claim": "uid",
            "audience": "",
            "issuer": "",
            "leeway": 0,
            "require_device": False,
            "end_streams": False,
            "cookie": "",
        },
        "redis": {
            "addrs": (),
            "username": "",
            "password": "",
            "db": 0,
            "pool_size": 0,
            "sentinel": "",
            "tls": False,
        },
        "sse": {
            "heartbeat_interval": 15,
            "device_frame_cache_size": 100,
            "device_frame_cache_expire": 604800,
            "max_buffer_bytes": 1024 * 1024,
        },
        "limits": {
            "streams_per_user": 5000,
            "streams_per_address": 5000,
            "opens_per_second": 200,
            "pending_opens": 10_000,
            "sends_per_second": 0,
            "publisher_sends_per_second": 10,
            "batch_messages": 100_000,
            "wrong_keys_per_minute": 30,
            "connections_per_address": 1000,
            "head_seconds": 10,
            "body_seconds": 30,
            "exempt": ("127.0.0.0/8", "::1"),
            "exempt_networks": (ip_network("127.0.0.0/8"), ip_network("::1")),
        },
    }


def test_the_example_file_holds_every_key_in_order_with_its_default() -> None:
    tables = tomlkit.parse(EXAMPLE.read_text("utf-8")).unwrap()
    assert {name: list(keys) for name, keys in tables.items()} == {name: list(keys) for name, keys in schema().items()}
    assert list(tables) == list(schema())
    assert load(EXAMPLE, {}) == Config()


def test_the_example_file_has_a_comment_above_each_key() -> None:
    lines = EXAMPLE.read_text("utf-8").splitlines()
    assert max(map(len, lines)) <= 120
    keys = [number for number, line in enumerate(lines) if re.match(r"[a-z_]+ = ", line)]
    assert len(keys) == sum(map(len, schema().values()))
    assert [lines[number] for number in keys if not lines[number - 1].startswith("# ")] == []


def test_the_command_line_overrides_the_environment(file: Path) -> None:
    environ = {"SSE_BROKER_SERVER_HOST": "0.0.0.0", "SSE_BROKER_SERVER_PORT": "1"}
    got = loaded(file, "", environ, host="::1", port=2)
    assert (got.server.host, got.server.port) == ("::1", 2)


def test_the_system_file_is_read_when_no_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "system.toml")
    assert load(environ={}).server.port == 8080
    (tmp_path / "system.toml").write_text("[server]\nport = 1")
    assert load(environ={}).server.port == 1


def test_the_file_beside_a_bundled_executable_wins_over_the_system_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "system.toml")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bundle" / "sse-broker"))
    (tmp_path / "bundle").mkdir()
    (tmp_path / "system.toml").write_text("[server]\nport = 1")
    (tmp_path / "bundle" / "config.toml").write_text("[server]\nport = 2")
    assert load(environ={}).server.port == 1
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert load(environ={}).server.port == 2
    (tmp_path / "bundle" / "config.toml").unlink()
    assert load(environ={}).server.port == 1


def test_a_bad_option_is_named(file: Path) -> None:
    assert refusal(file, "", port=65536) == "--port: server.port must be 0 to 65535, not 65536"
    assert refusal(file, "", host="a b").startswith("--host: server.host must be an IP address or a host name")


def test_a_missing_key_is_sought_in_the_file_else_with_what_asked_for_it(file: Path) -> None:
    assert refusal(file, "", host="0.0.0.0").startswith(f"{file}: jwt.secret is not set")
    with pytest.raises(ConfigError, match=r"^--host: jwt\.secret is not set"):
        load(environ={}, host="0.0.0.0")
    with pytest.raises(ConfigError, match=r"^SSE_BROKER_SERVER_TLS_CERT: server\.tls_key must be set"):
        load(environ={"SSE_BROKER_SERVER_TLS_CERT": "c"})


def test_the_embedded_default_runs_without_a_secret() -> None:
    assert load(environ={}).jwt.secret == ""


def test_a_short_secret_is_enough_for_this_machine_alone(file: Path) -> None:
    assert loaded(file, '[jwt]\nsecret = "short"').jwt.secret == "short"


WEAK_SECRETS = {
    "": "is not set",
    "x" * 31: "is shorter than 32 bytes",
    "change-me": "is shorter than 32 bytes",
    "change-me-change-me-change-me-change-me": "is still a placeholder",
    "REPLACE_THIS_WITH_32_RANDOM_BYTES_OR_MORE": "is still a placeholder",
    "your-secret-goes-here-0123456789abcdef": "is still a placeholder",
    "x" * 64: "is still a placeholder",
    "secret" * 8: "is still a placeholder",
}


@pytest.mark.parametrize(("secret", "weakness"), WEAK_SECRETS.items())
@pytest.mark.parametrize("table", ['[redis]\naddrs = ["127.0.0.1:6379"]', '[server]\nhost = "0.0.0.0"'])
def test_a_weak_secret_stops_the_start_with_redis_and_on_a_reachable_host(
    file: Path, table: str, secret: str, weakness: str
) -> None:
    message = refusal(file, f'{table}\n[jwt]\nsecret = "{secret}"\n[api]\nkeys = ["{API_KEY}"]\n')
    assert message.startswith(f"{file}: jwt.secret {weakness}: ")
    assert "openssl rand -hex 32" in message
    assert not secret or secret not in message


def test_a_weak_former_secret_stops_the_start_too(file: Path) -> None:
    message = refusal(file, EXPOSED.replace("[api]", 'previous_secrets = ["old"]\n[api]'))
    assert message.startswith(f"{file}: jwt.previous_secrets holds a secret that is shorter than 32 bytes")


def test_a_secret_is_measured_in_bytes(file: Path) -> None:
    text = EXPOSED.replace(SECRET, "äöüßéèêëàâîïôûùç")
    assert loaded(file, text).jwt.secret == "äöüßéèêëàâîïôûùç"


def test_a_reachable_host_needs_api_keys_or_the_word_that_it_does_not(file: Path) -> None:
    without = EXPOSED.replace(f'keys = ["{API_KEY}"]', "")
    message = refusal(file, without)
    assert message.startswith(f"{file}: api.keys is not set: while server.host is 0.0.0.0 anybody could send and kick")
    assert "api.allow_anonymous = true" in message
    assert loaded(file, without + "allow_anonymous = true").api == ApiConfig(allow_anonymous=True)
    assert loaded(file, EXPOSED).api.keys == (API_KEY,)


@pytest.mark.parametrize(
    ("key", "weakness"),
    [
        ("tiny", "holds a key shorter than 16 characters"),
        ("change-me-change-me", "holds a placeholder"),
        ("your-api-key-goes-here", "holds a placeholder"),
        ("1111111111111111", "holds a placeholder"),
    ],
)
def test_a_weak_api_key_stops_the_start_on_a_reachable_host(file: Path, key: str, weakness: str) -> None:
    message = refusal(file, EXPOSED.replace(API_KEY, key))
    assert message.startswith(f"{file}: api.keys {weakness}: while server.host is 0.0.0.0 ")
    assert key not in message
    assert loaded(file, f'[api]\nkeys = ["{key}"]').api.keys == (key,)


def test_named_keys_are_keys_too(file: Path) -> None:
    without = EXPOSED.replace(f'keys = ["{API_KEY}"]', "")
    assert loaded(file, without + f'named_keys = ["shop:send:{API_KEY}"]').api.named_keys == (f"shop:send:{API_KEY}",)
    assert loaded(file, without + f'named_keys = ["shop:send:sha256:{"ab" * 32}"]').api.keys == ()
    message = refusal(file, without + 'named_keys = ["shop:send:tiny"]')
    assert message.startswith(f"{file}: api.named_keys holds a key shorter than 16 characters: ")


def test_a_key_that_is_there_twice_is_refused_for_its_scopes_would_be_a_riddle(file: Path) -> None:
    message = refusal(file, f'[api]\nkeys = ["{API_KEY}"]\nnamed_keys = ["shop:send:{API_KEY}"]')
    assert message == f"{file}: api.named_keys holds a key that is already there"


def test_random_secrets_are_strong_and_made_only_where_none_is_set() -> None:
    first, second = with_random_secret(Config()), with_random_secret(Config())
    assert first.jwt.secret != second.jwt.secret
    assert len(first.jwt.secret) >= 48
    given_secret = Config(jwt=JwtConfig(secret="mine"))
    assert with_random_secret(given_secret) is given_secret


def test_no_secret_shows_in_a_repr() -> None:
    shown = repr(
        Config(
            api=ApiConfig(keys=("sesame-1-sesame-1",), named_keys=("a:send:sesame-5-sesame-5",)),
            jwt=JwtConfig(secret="sesame-2-" + SECRET, previous_secrets=("sesame-3-" + SECRET,)),
            redis=RedisConfig(addrs=("a:1",), password="sesame-4"),
        )
    )
    assert "sesame" not in shown
    assert "a:1" in shown


@pytest.mark.parametrize(
    "text",
    [
        '[jwt]\nsecret = ["sesame"]',
        '[jwt]\nprevious_secrets = "sesame"',
        '[redis]\npassword = ["sesame"]',
        '[api]\nkeys = ["sesame sesame"]',
        '[api]\nkeys = "sesame"',
        '[api]\nnamed_keys = ["shop:send:sesame sesame"]',
        '[api]\nnamed_keys = ["shop:sned:sesame"]',
        '[api]\nnamed_keys = ["sesame"]',
        '[server]\nhost = "0.0.0.0"\n[jwt]\nsecret = "sesame"',
    ],
)
def test_no_secret_shows_in_a_message(file: Path, text: str) -> None:
    assert "sesame" not in refusal(file, text)
