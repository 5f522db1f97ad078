"""Single values: which are possible, and what is parsed from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sse_broker.config import RedisConfig, ServerConfig
from sse_broker.errors import ConfigError
from tests.config_files import refusal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a test writes its configuration."""
    return tmp_path / "config.toml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nport = -1", "server.port must be 0 to 65535, not -1"),
        ("[server]\nport = 65536", "server.port must be 0 to 65535, not 65536"),
        ("[server]\nworkers = 0", "server.workers must be 1 to 1024, not 0"),
        ("[server]\nmax_connections = -1", "server.max_connections must be 0 to"),
        ("[server]\nmax_body_bytes = 0", "server.max_body_bytes must be 1 to 1073741824 bytes, not 0"),
        ("[server]\ndrain_seconds = -0.1", "server.drain_seconds must be 0 seconds or more and at most ten years"),
        ("[server]\ndrain_seconds = inf", "server.drain_seconds must be 0 seconds or more and at most ten years"),
        ("[sse]\nheartbeat_interval = 0", "sse.heartbeat_interval must be more than 0 seconds"),
        ("[sse]\nheartbeat_interval = nan", "sse.heartbeat_interval must be more than 0 seconds"),
        ("[sse]\ndevice_frame_cache_size = 0", "sse.device_frame_cache_size must be 1 to"),
        ("[sse]\ndevice_frame_cache_expire = 0", "sse.device_frame_cache_expire must be more than 0 seconds"),
        ("[sse]\nmax_buffer_bytes = 1048575", "sse.max_buffer_bytes must be at least server.max_body_bytes (1048576)"),
        ("[jwt]\nexpire = 0", "jwt.expire must be more than 0 seconds"),
        ('[jwt]\nprevious_secrets = [""]', "jwt.previous_secrets holds an empty secret"),
        ("[redis]\ndb = -1", "redis.db must be 0 to"),
        ("[redis]\npool_size = -1", "redis.pool_size must be 0 to"),
        ('[redis]\nsentinel = "m"', "redis.addrs must name the Sentinels of redis.sentinel"),
        ('[redis]\naddrs = ["a:1", "b:1"]\ndb = 1', "redis.db must be 0 with several redis.addrs"),
        ("[jwt]\nleeway = -1", "jwt.leeway must be 0 to 3600 seconds"),
        ("[jwt]\njwks_refresh = 0", "jwt.jwks_refresh must be more than 0 seconds"),
        ('[jwt]\nuid_claim = ""', "jwt.uid_claim must name a claim"),
        ('[jwt]\ncookie = "a b"', "jwt.cookie must be the name of a cookie"),
        ('[jwt]\ncookie = "a=b"', "jwt.cookie must be the name of a cookie"),
        ('[jwt]\njwks_url = "keys.json"', "jwt.jwks_url must be an address such as https://"),
        ('[jwt]\njwks_url = "https://"', "jwt.jwks_url must be an address such as https://"),
        ('[jwt]\njwks_url = "https://a:b@c/"', "jwt.jwks_url must be an address such as https://"),
        ('[jwt]\njwks_url = "file:///etc/passwd"', "jwt.jwks_url must be an address such as https://"),
        ('[jwt]\njwks_url = "http://example.com/"', "jwt.jwks_url must begin with https://"),
        ("[limits]\nstreams_per_user = -1", "limits.streams_per_user must be 0 to"),
        ("[limits]\nopens_per_second = -0.1", "limits.opens_per_second must be 0 to"),
        ("[limits]\nsends_per_second = nan", "limits.sends_per_second must be 0 to"),
        ("[limits]\nbatch_messages = 0", "limits.batch_messages must be 1 to"),
        ("[limits]\nhead_seconds = -1", "limits.head_seconds must be 0 seconds or more"),
        ('[limits]\nexempt = ["here"]', "limits.exempt must hold IP addresses or networks"),
        ('[api]\nnamed_keys = ["a"]', 'api.named_keys must hold keys written "name:scopes:secret"'),
        ('[api]\nnamed_keys = ["a:send:"]', "api.named_keys holds the key a without a secret"),
        ('[redis]\naddrs = ["a:1", "a:1"]', "redis.addrs holds an address twice"),
        ('[api]\nkeys = [""]', "api.keys holds an empty key"),
        ('[api]\nkeys = ["with space"]', "api.keys holds a key with spaces"),
        ('[api]\nkeys = ["schlüssel"]', "api.keys holds a key with spaces or characters beyond ASCII"),
        ('[server]\ntls_cert = "c"', "server.tls_key must be set along with server.tls_cert"),
        ('[server]\ntls_key = "k"', "server.tls_cert must be set along with server.tls_key"),
        ("[server]\nworkers = 2", "server.workers = 2 needs redis.addrs"),
    ],
)
def test_impossible_values_are_refused(file: Path, text: str, message: str) -> None:
    assert refusal(file, text).startswith(f"{file}: {message}")


@pytest.mark.parametrize("host", ["", " ", "a b", "127.0.0.1:80", "[::1]", "http://a", "a/b", "-a", "a" * 64, "a\n"])
def test_impossible_hosts_are_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^server\.host must "):
        ServerConfig(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST.", "::ffff:127.0.0.1"])
def test_loopback_hosts(host: str) -> None:
    assert ServerConfig(host=host).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", "localhost.example.com", "127.1", "0"])
def test_hosts_that_others_may_reach(host: str) -> None:
    assert not ServerConfig(host=host).is_loopback


@pytest.mark.parametrize(
    "addr",
    [
        "",
        "a",
        "a:",
        ":1",
        "a:0",
        "a:65536",
        "a:-1",
        "a:1:2",
        "::1:6379",
        "[::1]",
        "[a]:1",
        "redis://a:1",
        "a b:1",
        "a:١",
    ],
)
def test_impossible_redis_addresses_are_refused(addr: str) -> None:
    with pytest.raises(ConfigError, match=r"^redis\.addrs must hold host:port"):
        RedisConfig(addrs=(addr,))


def test_redis_addresses_are_parsed() -> None:
    redis = RedisConfig(addrs=("redis-1:6379", "[::1]:1", "10.0.0.1:65535"))
    assert redis.addresses == (("redis-1", 6379), ("::1", 1), ("10.0.0.1", 65535))
    assert redis.is_cluster
    assert not redis.embedded
    assert not dataclasses.replace(redis, sentinel="mymaster").is_cluster
    assert RedisConfig().embedded


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "example.com",
        "https://",
        "https://a/",
        "https://a/path",
        "https://a?q",
        "https://a#f",
        "https://u@a",
        "https://A",
        "HTTPS://a",
        "https://a:443",
        "http://a:80",
        "https://a:x",
        "https://*.a",
        "https://a b",
        "https://ä.de",
        "https://[::1",
    ],
)
def test_origins_that_no_browser_sends_are_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"^server\.cors_origins (must hold origins|holds)"):
        ServerConfig(cors_origins=(origin,))


@pytest.mark.parametrize(
    "origin", ["*", "https://a.example", "http://localhost:3000", "https://[::1]:8443", "app://x", "http://a:443"]
)
def test_origins_as_browsers_send_them_are_taken(origin: str) -> None:
    assert ServerConfig(cors_origins=(origin,)).cors_origins == (origin,)


@pytest.mark.parametrize("proxy", ["", "proxy.example", "10.0.0.0/33", "10.0.0.1:80", "*"])
def test_proxies_must_be_addresses_or_networks(proxy: str) -> None:
    with pytest.raises(ConfigError, match=r"^server\.trusted_proxies must hold IP addresses"):
        ServerConfig(trusted_proxies=(proxy,))
