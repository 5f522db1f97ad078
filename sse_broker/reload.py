"""Reading the configuration again while the broker runs: API keys, tokens' keys and rules, origins, limits, certificates. All of
it comes into force at once, or, when anything is wrong, nothing does and one line says why. It knows no signals.
"""

import dataclasses
import logging
import ssl
from collections.abc import Callable

from sse_broker.access import access_of
from sse_broker.config import Config, LimitsConfig, ServerConfig, schema
from sse_broker.config_checks import BadValue
from sse_broker.errors import BrokerError
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
TLS_FILES = {"tls_cert", "tls_key"}


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
        read = self._read()
        if not read.jwt.secret:  # made up at the start, and tokens are out there
            read = dataclasses.replace(read, jwt=dataclasses.replace(read.jwt, secret=self.config.jwt.secret))
        config, later = _merged(self.config, read)
        fixed = read_key_files(config.jwt.public_keys)
        access = access_of(config, self._public_keys)
        tls_context(config.server)  # tried on another one: a certificate without its key would break the one in use
        # From here on nothing fails.
        if self._ssl_context is not None:
            self._ssl_context.load_cert_chain(config.server.tls_cert, config.server.tls_key)
        self._public_keys.replace_fixed(fixed)
        self._gate.change(access)
        self.config = config
        log.info("the configuration was read again")
        _say_later(later)


def taken_over(old: Config, read: Config) -> Config:
    """Return what is in force after a reload, and log what of `read` counts later.

    Raises: ConfigError when something that it names can not be used.
    """
    config, later = _merged(old, read)
    read_key_files(config.jwt.public_keys)
    tls_context(config.server)
    _say_later(later)
    return config


def _merged(old: Config, read: Config) -> tuple[Config, list[str]]:
    """Return `old` with what of `read` can be taken over, and the names of the keys that can not.

    Raises: ConfigError for what is good in `read` as a whole and not beside what stays: no API key, on an address that
    others can reach.
    """
    # A listener speaks TLS or does not, to the end; and with several workers one started later must not differ.
    tls_stays = bool(old.server.tls_cert) == bool(read.server.tls_cert)
    tables, later = {}, []
    for table, keys in schema().items():
        former, new = getattr(old, table), getattr(read, table)
        changed = [key for key in keys if getattr(former, key) != getattr(new, key)]
        now = RELOADABLE.get(table, set()) - (set() if tls_stays else TLS_FILES)
        later += [f"{table}.{key}" for key in changed if key not in now]
        tables[table] = dataclasses.replace(former, **{key: getattr(new, key) for key in changed if key in now})
    return dataclasses.replace(old, **tables), later


def _say_later(keys: list[str]) -> None:
    if keys:
        log.warning("these keys count from the next start on: %s", ", ".join(keys))


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
        raise BadValue(
            f"server.tls_cert {server.tls_cert} and server.tls_key {server.tls_key} can not be used: {reason}",
            "server.tls_cert",
            "server.tls_key",
        ) from None
    return context
