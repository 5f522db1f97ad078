"""Files and environment: what is read, what is refused, and in which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sse_broker import config
from sse_broker.config import (
    ApiConfig,
    Config,
    JwtConfig,
    LimitsConfig,
    RedisConfig,
    ServerConfig,
    SseConfig,
    load,
    schema,
)
from sse_broker.errors import ConfigError
from tests.config_files import API_KEY, EXAMPLE, SECRET, loaded, outcome, refusal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its configuration."""
    return tmp_path / "config.toml"


def test_a_file_gives_values_of_every_type(file: Path) -> None:
    got = loaded(
        file,
        '[server]\nport = 9000\ndrain_seconds = 2\ntrusted_proxies = ["10.0.0.0/8", "::1"]\n'
        "[api]\nallow_anonymous = true\n[sse]\nheartbeat_interval = 0.5\n",
    )
    assert (got.server.port, got.api.allow_anonymous, got.sse.heartbeat_interval) == (9000, True, 0.5)
    assert type(got.server.drain_seconds) is float
    assert got.server.trusted_proxies == ("10.0.0.0/8", "::1")
    assert [str(network) for network in got.server.trusted_networks] == ["10.0.0.0/8", "::1/128"]


@pytest.mark.parametrize("text", ["[server]\r\nport = 1\r\n", "\ufeff[server]\nport = 1\n", "server.port = 1\n"])
def test_files_from_windows_and_dotted_keys_are_read(file: Path, text: str) -> None:
    assert loaded(file, text).server.port == 1


def test_the_environment_overrides_the_file_for_every_key(file: Path) -> None:
    environ = {
        "SSE_BROKER_SERVER_HOST": "::1",
        "SSE_BROKER_SERVER_PORT": " 81 ",
        "SSE_BROKER_SERVER_WORKERS": "2",
        "SSE_BROKER_SERVER_ACCESS_LOG_PATH": "/a",
        "SSE_BROKER_SERVER_ERROR_LOG_PATH": "/b",
        "SSE_BROKER_SERVER_BROKER_LOG_PATH": "/c",
        "SSE_BROKER_SERVER_TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8,,",
        "SSE_BROKER_SERVER_CORS_ORIGINS": "https://a.example",
        "SSE_BROKER_SERVER_DRAIN_SECONDS": "1.5",
        "SSE_BROKER_SERVER_MAX_BODY_BYTES": "1000",
        "SSE_BROKER_SERVER_MAX_CONNECTIONS": "7",
        "SSE_BROKER_SERVER_ADMIN_PORT": "9",
        "SSE_BROKER_SERVER_TLS_CERT": "/cert",
        "SSE_BROKER_SERVER_TLS_KEY": "/key",
        "SSE_BROKER_API_KEYS": f"{API_KEY},other-key-of-mine",
        "SSE_BROKER_API_NAMED_KEYS": "shop:send:key-of-the-shop",
        "SSE_BROKER_API_ALLOW_ANONYMOUS": "yes",
        "SSE_BROKER_JWT_SECRET": SECRET,
        "SSE_BROKER_JWT_PREVIOUS_SECRETS": SECRET[::-1],
        "SSE_BROKER_JWT_EXPIRE": "60",
        "SSE_BROKER_JWT_PUBLIC_KEYS": "/a.pem,/b.pem",
        "SSE_BROKER_JWT_JWKS_URL": "https://login.example/keys",
        "SSE_BROKER_JWT_JWKS_REFRESH": "10",
        "SSE_BROKER_JWT_UID_CLAIM": "sub",
        "SSE_BROKER_JWT_AUDIENCE": "broker",
        "SSE_BROKER_JWT_ISSUER": "me",
        "SSE_BROKER_JWT_LEEWAY": "5",
        "SSE_BROKER_JWT_REQUIRE_DEVICE": "on",
        "SSE_BROKER_JWT_END_STREAMS": "on",
        "SSE_BROKER_JWT_COOKIE": "__Host-sse",
        "SSE_BROKER_REDIS_ADDRS": "redis:6379",
        "SSE_BROKER_REDIS_USERNAME": "u",
        "SSE_BROKER_REDIS_PASSWORD": " p,w ",
        "SSE_BROKER_REDIS_DB": "3",
        "SSE_BROKER_REDIS_POOL_SIZE": "4",
        "SSE_BROKER_REDIS_SENTINEL": "mymaster",
        "SSE_BROKER_REDIS_TLS": "True",
        "SSE_BROKER_SSE_HEARTBEAT_INTERVAL": "3",
        "SSE_BROKER_SSE_DEVICE_FRAME_CACHE_SIZE": "5",
        "SSE_BROKER_SSE_DEVICE_FRAME_CACHE_EXPIRE": "6",
        "SSE_BROKER_SSE_MAX_BUFFER_BYTES": "70000",
        "SSE_BROKER_LIMITS_STREAMS_PER_USER": "1",
        "SSE_BROKER_LIMITS_STREAMS_PER_ADDRESS": "2",
        "SSE_BROKER_LIMITS_OPENS_PER_SECOND": "3",
        "SSE_BROKER_LIMITS_PENDING_OPENS": "4",
        "SSE_BROKER_LIMITS_SENDS_PER_SECOND": "5",
        "SSE_BROKER_LIMITS_PUBLISHER_SENDS_PER_SECOND": "6",
        "SSE_BROKER_LIMITS_BATCH_MESSAGES": "7",
        "SSE_BROKER_LIMITS_WRONG_KEYS_PER_MINUTE": "8",
        "SSE_BROKER_LIMITS_CONNECTIONS_PER_ADDRESS": "20",
        "SSE_BROKER_LIMITS_HEAD_SECONDS": "9",
        "SSE_BROKER_LIMITS_BODY_SECONDS": "10",
        "SSE_BROKER_LIMITS_EXEMPT": "192.0.2.0/24",
        "PATH": "/bin",
    }
    assert len(environ) - 1 == sum(map(len, schema().values()))
    assert loaded(file, EXAMPLE.read_text("utf-8"), environ) == Config(
        ServerConfig(
            "::1",
            81,
            2,
            "/a",
            "/b",
            "/c",
            ("127.0.0.1", "10.0.0.0/8"),
            ("https://a.example",),
            1.5,
            1000,
            7,
            9,
            "/cert",
            "/key",
        ),
        ApiConfig((API_KEY, "other-key-of-mine"), ("shop:send:key-of-the-shop",), True),
        JwtConfig(
            SECRET,
            (SECRET[::-1],),
            60,
            ("/a.pem", "/b.pem"),
            "https://login.example/keys",
            10,
            "sub",
            "broker",
            "me",
            5,
            True,
            True,
            "__Host-sse",
        ),
        RedisConfig(("redis:6379",), "u", " p,w ", 3, 4, "mymaster", True),
        SseConfig(3, 5, 6, 70000),
        LimitsConfig(1, 2, 3, 4, 5, 6, 7, 8, 20, 9, 10, ("192.0.2.0/24",)),
    )


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("ON", True), ("false", False), ("0", False), ("No", False)]
)
def test_booleans_of_the_environment(text: str, value: bool) -> None:
    assert load(environ={"SSE_BROKER_REDIS_TLS": text}).redis.tls is value


def test_an_empty_variable_empties_texts_and_lists(file: Path) -> None:
    environ = {"SSE_BROKER_REDIS_ADDRS": "", "SSE_BROKER_JWT_SECRET": ""}
    got = loaded(file, f'[redis]\naddrs = ["a:1"]\n[jwt]\nsecret = "{SECRET}"\n', environ)
    assert got.redis.embedded
    assert got.jwt.secret == ""


def test_kubernetes_and_docker_may_set_their_variables_for_a_service_of_our_name() -> None:
    environ = {
        "SSE_BROKER_PORT": "tcp://10.0.0.1:8080",
        "SSE_BROKER_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "SSE_BROKER_PORT_8080_TCP_ADDR": "10.0.0.1",
        "SSE_BROKER_PORT_8080_TCP_PORT": "8080",
        "SSE_BROKER_PORT_8080_TCP_PROTO": "tcp",
        "SSE_BROKER_SERVICE_HOST": "10.0.0.1",
        "SSE_BROKER_SERVICE_PORT": "8080",
        "SSE_BROKER_SERVICE_PORT_HTTP": "8080",
        "SSE_BROKER_REDIS_SERVICE_HOST": "10.0.0.2",
        "SSE_BROKER_REDIS_PORT": "tcp://10.0.0.2:6379",
        "SSE_BROKER_SERVER_PORT": "tcp://10.0.0.1:8080",
    }
    assert load(environ=environ) == Config()


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}/none.toml: there is no such file$"):
        load(tmp_path / "none.toml", {})


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}: can not be read: "):
        load(tmp_path, {})


def test_a_system_file_that_can_not_be_read_is_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}: can not be read: Is a directory$"):
        load(environ={})


def test_a_file_that_is_not_utf_8(file: Path) -> None:
    file.write_bytes(b'[server]\nhost = "\xff"\n')
    with pytest.raises(ConfigError, match=r"config.toml: is not UTF-8 text \(byte 17\)$"):
        load(file, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nport = = 1\n", "is not TOML: .* at line 2 col 7"),
        ('[server]\nhost = "open\n', "is not TOML: .* at line 2"),
        ("[server\n", "is not TOML: .* at line 1"),
        ("[server]\nport = 1\nport = 2\n", 'is not TOML: Key "port" already exists'),
        ("x = " + "[" * 5000, "is not TOML: "),
        (f"[server]\nport = {'9' * 5000}\n", "is not TOML: "),
    ],
)
def test_broken_toml_is_refused_with_its_line(file: Path, text: str, message: str) -> None:
    assert re.match(f"{re.escape(str(file))}: {message}", refusal(file, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1", "unknown key server.prot; did you mean server.port?"),
        ('[server]\nsecret = "x"', "unknown key server.secret; did you mean jwt.secret?"),
        ("[server]\nzzz = 1", "unknown key server.zzz"),
        ('[server]\n"a\\nb" = 1', "unknown key 'server.a\\nb'"),
        ("[sever]\nport = 1", "unknown table sever; did you mean server?"),
        ("port = 1", "key port stands in no table; write it under [server]"),
        ("zzz = 1", "key zzz stands in no table"),
        ("server = 1", "server must be a table: write [server] above its keys"),
        ("[[server]]\nport = 1", "server must be a table: write [server] above its keys"),
    ],
)
def test_unknown_tables_and_keys_are_refused_with_the_nearest_name(file: Path, text: str, message: str) -> None:
    assert refusal(file, text) == f"{file}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nport = true", "server.port must be a whole number, not true or false"),
        ("[server]\nport = 80.0", "server.port must be a whole number, not a fraction"),
        ('[server]\nport = "80"', "server.port must be a whole number, not text"),
        ("[server]\nport = 2024-09-12", "server.port must be a whole number, not a date or time"),
        ("[server]\nhost = 1", "server.host must be text in quotes, not a whole number"),
        ("[server.host]\nx = 1", "server.host must be text in quotes, not a table"),
        ('[server]\ncors_origins = "*"', "server.cors_origins must be a list of texts, not text"),
        ("[server]\ncors_origins = [1]", "server.cors_origins must be a list of texts, not a list of other things"),
        ("[redis]\ntls = 1", "redis.tls must be true or false, not a whole number"),
        ("[sse]\nheartbeat_interval = true", "sse.heartbeat_interval must be a number of seconds, not true or false"),
        ('[server]\nhost = "a\\u0000"', "server.host holds a NUL or what is not UTF-8"),
    ],
)
def test_wrong_types_are_refused(file: Path, text: str, message: str) -> None:
    assert refusal(file, text) == f"{file}: {message}"


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("SSE_BROKER_SERVER_PRT", "1", "unknown variable; did you mean SSE_BROKER_SERVER_PORT?"),
        ("SSE_BROKER_", "1", "unknown variable"),
        ("SSE_BROKER_SERVER_PORT", "http", "server.port must be a whole number"),
        ("SSE_BROKER_SERVER_PORT", "", "server.port must be a whole number"),
        ("SSE_BROKER_SERVER_PORT", "1_0", "server.port must be a whole number"),
        ("SSE_BROKER_SERVER_PORT", "9" * 5000, "server.port must be a whole number"),
        ("SSE_BROKER_SERVER_PORT", "70000", "server.port must be 0 to 65535, not 70000"),
        ("SSE_BROKER_JWT_EXPIRE", "nan", "jwt.expire must be a number of seconds"),
        ("SSE_BROKER_REDIS_TLS", "maybe", "redis.tls must be true or false"),
        ("SSE_BROKER_SERVER_HOST", "a\udcff", "server.host holds a NUL or what is not UTF-8"),
        ("SSE_BROKER_SERVER_WORKERS", "2", "server.workers = 2 needs redis.addrs: without Redis one process is all"),
    ],
)
def test_a_bad_variable_is_named(file: Path, variable: str, text: str, message: str) -> None:
    assert refusal(file, "", {variable: text}).startswith(f"{variable}: {message}")


SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20).filter(lambda text: text.isprintable()),
    st.sampled_from(["127.0.0.1", "a:1", "*", "https://a.example", "10.0.0.0/8"]),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from([*schema(), "serve"]),
        st.dictionaries(
            st.sampled_from([key for keys in schema().values() for key in keys]), VALUES, min_size=1, max_size=3
        ),
        max_size=3,
    )
)
def test_any_toml_gives_a_configuration_or_one_line(file: Path, tables: dict[str, dict[str, Any]]) -> None:
    file.write_text(tomlkit.dumps(tables), "utf-8")
    got = outcome(file, {})
    if isinstance(got, str):
        assert "\n" not in got
        assert got.startswith(f"{file}: ")
    else:
        assert all(hasattr(getattr(got, table), key) for table, keys in tables.items() for key in keys)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80))
def test_any_bytes_give_a_configuration_or_one_line(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    got = outcome(file, {})
    assert isinstance(got, Config) or (got.startswith(f"{file}: ") and "\n" not in got)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([f"SSE_BROKER_{table}_{key}".upper() for table, keys in schema().items() for key in keys]),
    st.text(st.characters(exclude_characters="\0"), max_size=30),
)
def test_any_variable_gives_a_configuration_or_one_line(file: Path, variable: str, text: str) -> None:
    file.write_text("")
    got = outcome(file, {variable: text})
    where = (f"{variable}: ", f"{file}: ")  # the file where it lacks what the variable asks for
    assert isinstance(got, Config) or (got.startswith(where) and "\n" not in got)
