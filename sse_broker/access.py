"""What decides who may do what and may change while the broker runs: API keys, tokens, origins, limits. One value, made from
a configuration and swapped as a whole when it is read again, so that no request sees half of two configurations.
"""

from dataclasses import dataclass

from sse_broker.api_keys import ApiKeys
from sse_broker.config import Config, LimitsConfig
from sse_broker.token_keys import PublicKeys, read_key_files, require_library
from sse_broker.tokens import TokenRules, Tokens

CORS_MAX_AGE_SECONDS = 600
CORS_HEADERS = "Authorization, Content-Type, Last-Event-ID, X-SSE-API-Key, X-SSE-DEVICE, X-SSE-ID, X-SSE-TOKEN"

_EXPOSED = {"Access-Control-Expose-Headers": "Retry-After"}


@dataclass(frozen=True, slots=True)
class Origins:
    """The web sites whose pages may use this broker, by exact origin; `every` is any site, without cookies.

    `credentials`: pages of named sites may let their visitors' cookies speak, since a token may stand in one.
    """

    named: frozenset[str] = frozenset()
    every: bool = False
    credentials: bool = False

    def headers(self, origin: str) -> dict[str, str]:
        """Return what an answer to a page of this origin says, `origin` as the browser sent it, empty without one."""
        if not self.named and not self.every:
            return {}
        if origin in self.named:
            headers = {"Vary": "Origin", "Access-Control-Allow-Origin": origin} | _EXPOSED
            # Only for sites that are named: with `*` any page could act for its visitor.
            return headers | {"Access-Control-Allow-Credentials": "true"} if self.credentials else headers
        if self.every:
            return {"Access-Control-Allow-Origin": "*"} | _EXPOSED
        return {"Vary": "Origin"}

    def preflight(self, origin: str, methods: str) -> dict[str, str]:
        """Return what the answer to a preflight says; `methods` are those of the endpoint."""
        headers = self.headers(origin)
        if "Access-Control-Allow-Origin" in headers:
            headers["Access-Control-Allow-Methods"] = methods
            headers["Access-Control-Allow-Headers"] = CORS_HEADERS
            headers["Access-Control-Max-Age"] = str(CORS_MAX_AGE_SECONDS)
        return headers | {"Allow": f"{methods}, OPTIONS"}

    def trusts(self, origin: str, host: str) -> bool:
        """Tell whether a page of this origin may act with the cookies of its visitor; `host` is the request's own."""
        return origin in self.named or origin in (f"https://{host}", f"http://{host}")


@dataclass(frozen=True, slots=True)
class Access:
    """One configuration's answer to who may do what."""

    keys: ApiKeys
    tokens: Tokens
    origins: Origins
    limits: LimitsConfig
    expire_seconds: float
    cookie: str = ""


def access_of(config: Config, public_keys: PublicKeys | None = None) -> Access:
    """Return the access that a configuration gives. `public_keys` has the keys of a JWK set. Raises: ConfigError."""
    jwt = config.jwt
    if public_keys is None:
        public_keys = public_keys_of(config)
    rules = TokenRules(jwt.audience, jwt.issuer, jwt.leeway, jwt.require_device, jwt.uid_claim)
    origins = config.server.cors_origins
    return Access(
        ApiKeys(key for _, key in config.api.parsed_keys),
        Tokens(jwt.secret, jwt.previous_secrets, rules=rules, public_keys=public_keys),
        Origins(frozenset(origins) - {"*"}, "*" in origins, bool(jwt.cookie)),
        config.limits,
        jwt.expire,
        jwt.cookie,
    )


def public_keys_of(config: Config) -> PublicKeys:
    """Return the public keys in the files that a configuration names. Raises: ConfigError."""
    if config.jwt.jwks_url:
        require_library("jwt.jwks_url")
    return PublicKeys(read_key_files(config.jwt.public_keys), awaits=bool(config.jwt.jwks_url))
