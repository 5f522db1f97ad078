"""The configuration: every key and every default, in the order of the tables of `etc/config.toml`.

Owns the values, which are checked when they are made, so that a `Config` that exists is one to run with. Must not know
how values are written (`config_source`) and touches nothing but the configuration file: whether a path can be opened or
a port is free shows at the start.
"""

import dataclasses
import os
import secrets
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sse_broker import config_checks as checks
from sse_broker.api_keys import ApiKey, named_key, plain_key
from sse_broker.client_address import Network
from sse_broker.config_checks import BadValue
from sse_broker.config_source import Settings
from sse_broker.errors import ConfigError

SYSTEM_FILE = Path("/etc/sse-broker/config.toml")
BUNDLE_FILE_NAME = "config.toml"

_MIB = 1024 * 1024
_MAX_BYTES = 1024 * _MIB


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How the broker is reached. Times in seconds, sizes in bytes; an empty path means standard streams."""

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    access_log_path: str = ""
    error_log_path: str = ""
    broker_log_path: str = ""
    trusted_proxies: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    drain_seconds: float = 10.0
    max_body_bytes: int = _MIB
    max_connections: int = 0
    admin_port: int = 0
    tls_cert: str = ""
    tls_key: str = ""
    # Not a key: `trusted_proxies`, parsed once, since every request asks. A single address is a network of its own.
    trusted_networks: tuple[Network, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every value. Raises: ConfigError."""
        checks.check_host("server.host", self.host)
        checks.check_range("server.port", self.port, 0, 65535)
        checks.check_range("server.workers", self.workers, 1, 1024)
        checks.check_seconds("server.drain_seconds", self.drain_seconds, zero_allowed=True)
        checks.check_range("server.max_body_bytes", self.max_body_bytes, 1, _MAX_BYTES, "bytes")
        checks.check_range("server.max_connections", self.max_connections, 0, 100_000_000)
        checks.check_range("server.admin_port", self.admin_port, 0, 65535)
        networks = tuple(checks.parsed_network("server.trusted_proxies", text) for text in self.trusted_proxies)
        object.__setattr__(self, "trusted_networks", networks)
        for origin in self.cors_origins:
            checks.check_origin("server.cors_origins", origin)
        if self.tls_cert and not self.tls_key:
            raise BadValue("server.tls_key must be set along with server.tls_cert", "server.tls_key", "server.tls_cert")
        if self.tls_key and not self.tls_cert:
            raise BadValue("server.tls_cert must be set along with server.tls_key", "server.tls_cert", "server.tls_key")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the listener."""
        return checks.is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Who may call `/token`, `/send`, `/info` and `/kick`."""

    keys: tuple[str, ...] = field(default=(), repr=False)
    named_keys: tuple[str, ...] = field(default=(), repr=False)
    allow_anonymous: bool = False
    # Not a key: both lists, parsed once, each key with the name of the list that holds it.
    parsed_keys: tuple[tuple[str, ApiKey], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every value. Raises: ConfigError."""
        keys = [("api.keys", plain_key(number, secret)) for number, secret in enumerate(self.keys, 1)]
        try:
            keys += [("api.named_keys", named_key(text)) for text in self.named_keys]
        except ValueError as error:
            raise BadValue(f"api.named_keys {error}", "api.named_keys") from None
        for name, key in keys:
            if key.secret or name == "api.keys":  # a hash has no secret to look at
                checks.check_header_value(name, key.secret)
        if len({key.digest for _, key in keys}) < len(keys):
            raise BadValue("api.named_keys holds a key that is already there", "api.named_keys", "api.keys")
        object.__setattr__(self, "parsed_keys", tuple(keys))


@dataclass(frozen=True, slots=True)
class JwtConfig:
    """How tokens are signed and checked. Times in seconds; `secret` is empty only until `with_random_secret` fills it."""

    secret: str = field(default="", repr=False)
    previous_secrets: tuple[str, ...] = field(default=(), repr=False)
    expire: float = 30.0
    public_keys: tuple[str, ...] = ()
    jwks_url: str = ""
    jwks_refresh: float = 300.0
    uid_claim: str = "uid"
    audience: str = ""
    issuer: str = ""
    leeway: float = 0.0
    require_device: bool = False
    end_streams: bool = False
    cookie: str = ""

    def __post_init__(self) -> None:
        """Check every value. Raises: ConfigError."""
        checks.check_seconds("jwt.expire", self.expire)
        checks.check_seconds("jwt.jwks_refresh", self.jwks_refresh)
        checks.check_range("jwt.leeway", self.leeway, 0, 3600, "seconds")
        checks.check_key_address("jwt.jwks_url", self.jwks_url)
        checks.check_cookie_name("jwt.cookie", self.cookie)
        if not self.uid_claim:
            raise BadValue("jwt.uid_claim must name a claim", "jwt.uid_claim")
        if not all(self.previous_secrets):
            raise BadValue(
                "jwt.previous_secrets holds an empty secret, with which anybody can sign", "jwt.previous_secrets"
            )


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """What one user, one address, one key may do here. Counts are for one instance; 0 is no limit. Times in seconds."""

    streams_per_user: int = 5_000
    streams_per_address: int = 5_000
    opens_per_second: float = 200.0
    pending_opens: int = 10_000
    sends_per_second: float = 0.0
    publisher_sends_per_second: float = 10.0
    batch_messages: int = 100_000
    wrong_keys_per_minute: float = 30.0
    connections_per_address: int = 1_000
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    exempt: tuple[str, ...] = ("127.0.0.0/8", "::1")
    # Not a key: `exempt`, parsed once.
    exempt_networks: tuple[Network, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every value. Raises: ConfigError."""
        for key in ("streams_per_user", "streams_per_address", "pending_opens", "connections_per_address"):
            checks.check_range(f"limits.{key}", getattr(self, key), 0, 100_000_000)
        for key in ("opens_per_second", "sends_per_second", "publisher_sends_per_second", "wrong_keys_per_minute"):
            checks.check_range(f"limits.{key}", getattr(self, key), 0, 1_000_000_000)
        checks.check_range("limits.batch_messages", self.batch_messages, 1, 10_000_000)
        checks.check_seconds("limits.head_seconds", self.head_seconds, zero_allowed=True)
        checks.check_seconds("limits.body_seconds", self.body_seconds, zero_allowed=True)
        networks = tuple(checks.parsed_network("limits.exempt", text) for text in self.exempt)
        object.__setattr__(self, "exempt_networks", networks)


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """The Redis that makes a cluster; without `addrs` the embedded backend runs.

    One address: standalone; several: Redis Cluster; with `sentinel` (the master's name) the addresses are Sentinels.
    """

    addrs: tuple[str, ...] = ()
    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    pool_size: int = 0
    sentinel: str = ""
    tls: bool = False

    def __post_init__(self) -> None:
        """Check every value. Raises: ConfigError."""
        if len(set(self.addresses)) < len(self.addrs):
            raise BadValue("redis.addrs holds an address twice", "redis.addrs")
        checks.check_range("redis.db", self.db, 0, 1_000_000)
        checks.check_range("redis.pool_size", self.pool_size, 0, 100_000)
        if self.sentinel and not self.addrs:
            raise BadValue("redis.addrs must name the Sentinels of redis.sentinel", "redis.addrs", "redis.sentinel")
        if self.is_cluster and self.db:
            raise BadValue("redis.db must be 0 with several redis.addrs: a Redis Cluster has no other", "redis.db")

    @property
    def embedded(self) -> bool:
        """Whether the broker runs without Redis."""
        return not self.addrs

    @property
    def is_cluster(self) -> bool:
        """Whether the addresses are those of a Redis Cluster."""
        return len(self.addrs) > 1 and not self.sentinel

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """`addrs`, parsed: host (IPv6 without brackets) and port of each."""
        return tuple(checks.parsed_address("redis.addrs", text) for text in self.addrs)


@dataclass(frozen=True, slots=True)
class SseConfig:
    """How streams are kept. Times in seconds; the cache size in frames per device, per user and for broadcasts."""

    heartbeat_interval: float = 15.0
    device_frame_cache_size: int = 100
    device_frame_cache_expire: float = 604800.0
    max_buffer_bytes: int = _MIB

    def __post_init__(self) -> None:
        """Check every value. Raises: ConfigError."""
        checks.check_seconds("sse.heartbeat_interval", self.heartbeat_interval)
        checks.check_range("sse.device_frame_cache_size", self.device_frame_cache_size, 1, 10_000_000, "frames")
        checks.check_seconds("sse.device_frame_cache_expire", self.device_frame_cache_expire)
        checks.check_range("sse.max_buffer_bytes", self.max_buffer_bytes, 1, _MAX_BYTES, "bytes")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration, checked across its tables and safe by default."""

    server: ServerConfig = field(default_factory=ServerConfig)
    api: ApiConfig = field(default_factory=ApiConfig)
    jwt: JwtConfig = field(default_factory=JwtConfig)
    redis: RedisConfig = field(default_factory=RedisConfig)
    sse: SseConfig = field(default_factory=SseConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    def __post_init__(self) -> None:
        """Check what concerns several tables. Raises: ConfigError."""
        if self.server.workers > 1 and self.redis.embedded:
            raise BadValue(
                f"server.workers = {self.server.workers} needs redis.addrs: without Redis one process is all there is",
                "server.workers",
            )
        # A frame that the body limit lets in would else end every stream that it is for.
        if self.sse.max_buffer_bytes < self.server.max_body_bytes:
            raise BadValue(
                f"sse.max_buffer_bytes must be at least server.max_body_bytes ({self.server.max_body_bytes}), "
                f"so that one frame fits, not {self.sse.max_buffer_bytes}",
                "sse.max_buffer_bytes",
                "server.max_body_bytes",
            )
        self._check_secrets()
        if not self.server.is_loopback:
            self._check_api_keys()

    def _check_secrets(self) -> None:
        if self.redis.embedded and self.server.is_loopback:
            return
        why = "with Redis" if self.server.is_loopback else f"while server.host is {self.server.host}"
        blamed = "redis.addrs" if self.server.is_loopback else "server.host"
        named = [("jwt.secret", self.jwt.secret), *(("jwt.previous_secrets", old) for old in self.jwt.previous_secrets)]
        for key, secret in named:
            weakness = checks.secret_weakness(secret)
            if weakness and key == "jwt.secret":
                raise BadValue(
                    f"{key} {weakness}: {why} it must be {checks.MIN_SECRET_BYTES} random bytes or more, "
                    "for example from: openssl rand -hex 32",
                    key,
                    blamed,
                )
            if weakness:
                raise BadValue(f"{key} holds a secret that {weakness}: {why} that is not safe; remove it", key, blamed)

    def _check_api_keys(self) -> None:
        why = f"while server.host is {self.server.host}"
        if not self.api.parsed_keys and not self.api.allow_anonymous:
            raise BadValue(
                f"api.keys is not set: {why} anybody could send and kick; set one "
                "(for example from: openssl rand -hex 32) or write api.allow_anonymous = true",
                "api.keys",
                "server.host",
            )
        for name, key in self.api.parsed_keys:
            weakness = checks.api_key_weakness(key.secret) if key.secret else None
            if weakness:
                raise BadValue(
                    f"{name} {weakness}: {why} it must be random, for example from: openssl rand -hex 32",
                    name,
                    "server.host",
                )


def load(
    path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    host: str | None = None,
    port: int | None = None,
) -> Config:
    """Read the configuration: file, then environment, then `host` and `port` of the command line, each over the former.

    `path` must exist; without it `candidate_files` are tried. Raises: ConfigError with one line that names the file (or
    the variable or the option), the table and the key.
    """
    options = {"host": host, "port": port}
    return _load(path, environ, {name: value for name, value in options.items() if value is not None})[0]


def load_with_sources(
    path: Path | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[Config, dict[str, str]]:
    """Read the configuration, and return with it where each `table.key` that is not a default was set. Raises: ConfigError."""
    config, settings = _load(path, environ, {})
    names = [f"{table}.{key}" for table, keys in schema().items() for key in keys]
    return config, {name: source for name in names if (source := settings.source(name))}


def with_place(error: BadValue, path: Path | None = None, environ: Mapping[str, str] = os.environ) -> ConfigError:
    """Return an error about a value, found when it was used, as `load` would have raised it: with where the value was set."""
    settings, file = _settings(path, environ)
    return ConfigError(f"{_place(settings, error, file)}: {error.message}")


def _settings(path: Path | None, environ: Mapping[str, str]) -> tuple[Settings, Path | None]:
    settings = Settings(schema())
    file = _add_file(settings, path)
    settings.add_environment(environ)
    return settings, file


def _load(path: Path | None, environ: Mapping[str, str], options: Mapping[str, str | int]) -> tuple[Config, Settings]:
    settings, file = _settings(path, environ)
    for name, value in options.items():
        settings.add_option(f"--{name}", f"server.{name}", value)
    try:
        tables = {name: kind(**settings.table(name)) for name, kind in typing.get_type_hints(Config).items()}
        return Config(**tables), settings
    except BadValue as error:
        raise ConfigError(f"{_place(settings, error, file)}: {error.message}") from None


def with_random_secret(config: Config) -> Config:
    """Return the configuration with a secret made up for this run if it has none; its tokens end with the process."""
    if config.jwt.secret:
        return config
    return dataclasses.replace(config, jwt=dataclasses.replace(config.jwt, secret=secrets.token_urlsafe(48)))


def schema() -> dict[str, dict[str, Any]]:
    """Return the type of each key by table, in order."""
    tables = typing.get_type_hints(Config)
    return {name: {key.name: key.type for key in dataclasses.fields(kind) if key.init} for name, kind in tables.items()}


def secret_keys() -> frozenset[str]:
    """Return the keys, as `table.key`, whose values must not be shown: those that are left out of their table's `repr`."""
    tables = typing.get_type_hints(Config)
    keys = [(name, key) for name, kind in tables.items() for key in dataclasses.fields(kind)]
    return frozenset(f"{name}.{key.name}" for name, key in keys if key.init and not key.repr)


def candidate_files() -> tuple[Path, ...]:
    """Return where a configuration file is looked for when none is named, the first that exists counts."""
    beside = (Path(sys.executable).with_name(BUNDLE_FILE_NAME),) if getattr(sys, "frozen", False) else ()
    return (*beside, SYSTEM_FILE)


def _add_file(settings: Settings, path: Path | None) -> Path | None:
    for candidate in candidate_files() if path is None else (path,):
        try:
            settings.add_file(candidate)
        except (FileNotFoundError, NotADirectoryError) as error:
            if path is not None:
                raise ConfigError(f"{path}: there is no such file") from error
        else:
            return candidate
    return None


def _place(settings: Settings, error: BadValue, file: Path | None) -> str:
    """Say where the operator should look: where the key is set, else the file that lacks it, else what asked for it."""
    first = settings.source(error.keys[0])
    others = [source for source in map(settings.source, error.keys[1:]) if source]
    return first or (str(file) if file else "") or (others[0] if others else "built-in defaults")
