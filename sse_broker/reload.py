"""Reading the configuration again while the broker runs: API keys, tokens' keys and rules, origins, limits, certificates. All of
it comes into force at once, or, when anything is wrong, nothing does and one line says why. It knows no signals.
"""

import dataclasses
import logging
import ssl
from collections.abc import Callable

from sse_broker.access import access_of
from sse_broker.config import Config, LimitsConfig, ServerConfig, schema
from sse_broker.errors import BrokerError, ConfigError
from sse_broker.gate import Gate
from sse_broker.token_keys import PublicKeys, read_key_files

log = logging.getLogger(__name__)

# What a running broker can take over; other keys count from the next start on.
RELOADABLE = {
    "server": {"cors_origins", "tls_cert", "tls_key"},
    "api": {"keys", "named_keys", "allow_anonymous"},
    "jwt": {
        "secret", "previous_secrets", "expire", "public_keys", "uid_claim", "audience", "issuer", "leeway",
        "require_device", "cookie",
    },
    "limits": {field.name for field in dataclasses.fields(LimitsConfig)},
}  # fmt: skip


class Reloader:
    """Reads the configuration again with `read` and puts it into force; `config` is the one in force."""

    def __init__(
        self,
        config: Config,
        read: Callable[[], Config],
        gate: Gate,
        public_keys: PublicKeys,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self.config = config
        self._read = read
        self._gate = gate
        self._public_keys = public_keys
        self._ssl_context = ssl_context

    def reload(self) -> None:
        """Read and apply; what is wrong is logged and nothing else."""
        try:
            self._reload()
        except BrokerError as error:
            self._gate.counters.refused_reloads += 1
            log.error("the configuration is not read again, the former one stays: %s", error.message)
        else:
            self._gate.counters.reloads += 1

    def _reload(self) -> None:
        config = self._read()
        if not config.jwt.secret:  # made up at the start, and tokens are out there
            config = dataclasses.replace(config, jwt=dataclasses.replace(config.jwt, secret=self.config.jwt.secret))
        fixed = read_key_files(config.jwt.public_keys)
        access = access_of(config, self._public_keys)
        if self._ssl_context is not None and config.server.tls_cert:
            tls_context(config.server)  # tried on another one: a certificate without its key would break the one in use
        later = _changed(self.config, config)
        # From here on nothing fails.
        if self._ssl_context is not None and config.server.tls_cert:
            self._ssl_context.load_cert_chain(config.server.tls_cert, config.server.tls_key)
        self._public_keys.replace_fixed(fixed)
        self._gate.change(access)
        self.config = config
        log.info("the configuration was read again")
        if later:
            log.warning("these keys count from the next start on: %s", ", ".join(later))


def taken_over(old: Config, read: Config) -> Config:
    """Return what is in force after a reload: `old` with what of `read` can be taken over.

    Raises: ConfigError when something that it names can not be used.
    """
    read_key_files(read.jwt.public_keys)
    tls_context(read.server)
    if later := _changed(old, read):
        log.warning("these keys count from the next start on: %s", ", ".join(later))
    tables = {}
    for table, keys in schema().items():
        changed = {key: getattr(getattr(read, table), key) for key in keys if key in RELOADABLE.get(table, ())}
        tables[table] = dataclasses.replace(getattr(old, table), **changed)
    return dataclasses.replace(old, **tables)


def tls_context(server: ServerConfig) -> ssl.SSLContext | None:
    """Return what the listener needs for TLS 1.2 and newer; None when it serves plain HTTP. Raises: ConfigError."""
    if not server.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(server.tls_cert, server.tls_key)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(
            f"server.tls_cert {server.tls_cert} and server.tls_key {server.tls_key} can not be used: {reason}"
        ) from None
    return context


def _changed(old: Config, new: Config) -> list[str]:
    """Return the keys that differ and can not be taken over now."""
    return [
        f"{table.name}.{key.name}"
        for table in dataclasses.fields(Config)
        for key in dataclasses.fields(getattr(new, table.name))
        if key.init
        and key.name not in RELOADABLE.get(table.name, ())
        and getattr(getattr(old, table.name), key.name) != getattr(getattr(new, table.name), key.name)
    ]
