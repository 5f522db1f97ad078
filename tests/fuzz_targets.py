"""What bytes from a stranger can reach, each as one function that takes bytes and must not fail: it raises only when a promise
is broken. `tests/fuzz.py` feeds them by the hundred thousand, `tests/test_fuzz.py` a few each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import jwt
from multidict import CIMultiDict

from sse_broker import config
from sse_broker.access_log import masked
from sse_broker.api_keys import ApiKeys, named_key, plain_key
from sse_broker.bounds import MAX_NAME_CHARS
from sse_broker.client_address import client_address, client_host
from sse_broker.config_checks import parsed_network
from sse_broker.envelope import FrameEnvelope
from sse_broker.errors import BadRequest, ConfigError, Unauthorized
from sse_broker.frame import MAX_ID, Frame, check_data, check_event
from sse_broker.limits import Buckets, address_key
from sse_broker.redis_entries import DamagedEntry, device_of, envelope_of, frame_of, page_of
from sse_broker.target import Target
from sse_broker.token_keys import parse_jwk_set
from sse_broker.tokens import Claims, Tokens
from sse_broker.web_batch import message_of
from sse_broker.web_multipart import parse_form
from sse_broker.web_params import Params, parse_json
from tests.event_parser import EventParser

SECRET = "q7Wm2c9ZtK4xVn8bRd3sYf6hJp1gLa5eQ0uTiOw"
API_KEY = "k7Rw2pXn9vBq4TzL"
PROXIES = (parsed_network("x", "10.0.0.0/8"), parsed_network("x", "fd00::/8"))

Target_ = Callable[[bytes], None]


def text_of(data: bytes) -> str:
    """Return text as a header's bytes become it."""
    return data.decode("utf-8", "surrogateescape")


def check_message(message: str) -> None:
    """A message is one line, or it would be two in a log."""
    assert "\n" not in message, message


def json_body(data: bytes) -> None:
    """A JSON body: parameters that can be used, or BadRequest."""
    try:
        value = parse_json(data)
    except BadRequest:
        return
    if isinstance(value, dict):
        use_params(Params(value))


def use_params(params: Params) -> None:
    """Ask for everything that the endpoints ask for; what is accepted can be written to a stream and to Redis."""
    for ask in (
        lambda: params.required_text("uid", max_chars=256),
        lambda: params.text("device", max_chars=256),
        lambda: params.number("ttl"),
        lambda: params.text("ip"),
    ):
        try:
            value = ask()
        except BadRequest:
            continue
        if isinstance(value, str):
            assert value.encode()
    try:
        message = message_of(params)
    except BadRequest:
        return
    for name in message.target.users:
        assert 0 < len(name) <= 256
        assert name.encode()
    read_back(Frame(7, message.event, message.data))


def read_back(frame: Frame) -> None:
    """A frame is read by a client as what was sent, and as nothing else."""
    parser = EventParser()
    events = list(parser.feed(frame.plain))
    assert len(events) == 1, events
    expected = re.sub("\r\n|\r|\n", "\n", frame.data)
    assert (events[0].event, events[0].data, events[0].id) == (frame.event or "message", expected, frame.id)
    assert frame.chunk.startswith(b"%x\r\n" % len(frame.plain))


def multipart(data: bytes) -> None:
    """A multipart body: fields, or BadRequest."""
    head, _, body = data.partition(b"\n")
    try:
        fields = parse_form(body, text_of(head), 1000)
    except BadRequest:
        return
    assert len(fields) <= 1000
    for name, value in fields:
        assert isinstance(name, str)
        assert isinstance(value, str)


def ndjson(data: bytes) -> None:
    """Lines of JSON, each for itself."""
    for line in data.split(b"\n"):
        if line.strip():
            json_body(line)


_TOKENS = Tokens(SECRET)


def token(data: bytes) -> None:
    """A token: no claims without the secret."""
    text = text_of(data)
    for check in (_TOKENS.verify, _TOKENS.verify_publisher):
        try:
            check(text)
        except Unauthorized as error:
            check_message(error.message)
            continue
        assert _signed_by_us(text), text


def _signed_by_us(text: str) -> bool:
    try:
        jwt.decode(
            text,
            SECRET,
            algorithms=["HS256"],
            options={
                "verify_exp": False,
                "verify_aud": False,
                "verify_iat": False,
                "verify_sub": False,
                "verify_jti": False,
            },
        )
    except jwt.PyJWTError:
        return False
    return True


def claims(data: bytes) -> None:
    """The claims of a token that is signed well but by somebody careless: a user that can be used, or Unauthorized."""
    header = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    payload = jwt.utils.base64url_encode(data).decode()
    signature = hmac.digest(SECRET.encode(), f"{header}.{payload}".encode(), hashlib.sha256)
    text = f"{header}.{payload}.{jwt.utils.base64url_encode(signature).decode()}"
    try:
        result: Claims | None = _TOKENS.verify(text)
    except Unauthorized:
        result = None
    if result is not None:
        assert 0 < len(result.uid) <= MAX_NAME_CHARS
        assert result.uid.encode()
        assert result.device_name is None or 0 < len(result.device_name) <= MAX_NAME_CHARS
        assert time.time() < result.expires_at < 1e12
    try:
        publisher = _TOKENS.verify_publisher(text)
    except Unauthorized:
        return
    assert publisher.reach.everyone in (True, False)
    if not publisher.reach.everyone:
        assert not publisher.reach.covers(Target())


def jwk_set(data: bytes) -> None:
    """A JWK set: keys for our algorithms, or ValueError."""
    try:
        keys = parse_jwk_set(data)
    except ValueError:
        return
    assert {key.algorithm for key in keys} <= {"RS256", "ES256", "EdDSA"}


def bus_entry(data: bytes) -> None:
    """An entry of Redis as anybody might have written it: skipped, or a whole frame."""
    parts = data.split(b"\xfe")
    entry = [parts[0], parts[1:]]
    for read in (frame_of, envelope_of):
        try:
            value = read(entry)
        except DamagedEntry:
            continue
        frame = value.frame if isinstance(value, FrameEnvelope) else value
        if isinstance(frame, Frame):
            assert 0 < frame.id <= MAX_ID
            read_back(frame)
    with contextlib.suppress(DamagedEntry):
        page_of(0, [[entry, entry], [entry]], 25)


def route(data: bytes) -> None:
    """A route of Redis: a device, or DamagedEntry."""
    try:
        device = device_of(data)
    except DamagedEntry:
        return
    assert device.device_id


def config_file(data: bytes) -> None:
    """A configuration file: a configuration, or ConfigError of one line."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        Path(file.name).write_bytes(data)
        try:
            config.load(Path(file.name), {})
        except ConfigError as error:
            check_message(error.message)


def environment(data: bytes) -> None:
    """Variables of the environment: the same."""
    environ = {}
    for line in text_of(data).replace("\0", "").split("\n"):
        name, _, value = line.partition("=")
        environ[f"SSE_BROKER_{name}"] = value
    try:
        settings = config.Settings(config.schema())
        settings.add_environment(environ)
        for name, kind in (("api", config.ApiConfig), ("jwt", config.JwtConfig), ("limits", config.LimitsConfig)):
            kind(**settings.table(name))
    except ConfigError as error:
        check_message(error.message)


def named_api_key(data: bytes) -> None:
    """A named key: good, or ValueError that does not tell it."""
    text = text_of(data)
    try:
        key = named_key(text)
    except ValueError as error:
        check_message(str(error))
        return
    assert ApiKeys([key]).find("") is None
    assert ApiKeys([key]).find(API_KEY) is None or API_KEY in text


def api_key(data: bytes) -> None:
    """An API key as a stranger sends it."""
    assert (ApiKeys([plain_key(1, API_KEY)]).find(text_of(data)) is None) == (data != API_KEY.encode())


def forwarded(data: bytes) -> None:
    """Headers of forwarding: an address that is one, whoever sent them."""
    lines = text_of(data).split("\n")
    headers = CIMultiDict([("X-Forwarded-For", line) for line in lines[:-1]] + [("X-Real-IP", lines[-1])])
    assert client_address(("192.0.2.1", 5), headers, PROXIES) == "192.0.2.1:5"
    trusted = client_address(("10.0.0.1", 5), headers, PROXIES)
    assert re.fullmatch(r"[0-9a-f.:\[\]]+", trusted), trusted
    assert client_host(("192.0.2.1", 5), headers, PROXIES) == "192.0.2.1"
    key = address_key(text_of(data))
    assert Buckets(1, 1).take(key) == 0


def logged_path(data: bytes) -> None:
    """A request's path in the access log: one line, and no token in it."""
    path = "/events?token=SESAME&" + text_of(data)
    line = masked(path)
    assert "SESAME" not in line
    assert not re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", line)
    names = [name for name, value in parse_qsl(path.partition("?")[2], errors="replace") if "OPEN" in value]
    if set(names) & {"token", "data"} and path.count("OPEN") == 1 and ";" not in path:
        assert "OPEN" not in line, (path, line)


def frame_data(data: bytes) -> None:
    """Data and an event name of any kind: refused, or read as they were."""
    event, _, text = data.decode("utf-8", "surrogateescape").partition("\0")
    try:
        frame = Frame(7, check_event(event), check_data(text))
    except BadRequest:
        return
    read_back(frame)


TARGETS: dict[str, Target_] = {
    function.__name__: function
    for function in (
        json_body,
        multipart,
        ndjson,
        token,
        claims,
        jwk_set,
        bus_entry,
        route,
        config_file,
        environment,
        named_api_key,
        api_key,
        forwarded,
        logged_path,
        frame_data,
    )
}


def _seeds() -> dict[str, list[bytes]]:
    good = jwt.encode({"uid": "a", "exp": 4_000_000_000}, SECRET, algorithm="HS256").encode()
    claims_text = json.dumps(
        {"uid": "a", "device_name": "d", "exp": 4_000_000_000, "nbf": 1, "publish": {"uid": ["a"], "everyone": True}}
    )
    frame = b"7-0\xfee\xfenews\xfed\xfehello\xfet\xfe" + b"a" * 32
    end = b"7-0\xfek\xfe1\xfei\xfeabc\xfec\xfeabc\xfer\xfekick_offline\xfep\xfebye"
    device = {
        "uid": "u",
        "device_name": "d",
        "device_address": "a",
        "instance_address": "b",
        "login_time": 1.0,
        "token_digest": "",
        "token_expires_at": 2.0,
    }
    body = {"uid": ["a", 7], "device": "b, c", "event": "news", "data": {"x": [1.5e300, None, "\n\r é"]}, "ttl": "7"}
    form = b'multipart/form-data; boundary="xx"\n--xx\r\nContent-Disposition: form-data; name="uid"\r\n\r\na\r\n--xx\r\nContent-Disposition: form-data; name=data; filename*=UTF-8\'\'x\r\nContent-Type: text/plain; charset=latin-1\r\n\r\nb\r\n--xx--\r\n'
    keys = {
        "keys": [
            {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43, "kid": "a", "use": "sig", "alg": "EdDSA"},
            {"kty": "RSA", "n": "A" * 342, "e": "AQAB"},
            {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43},
        ]
    }
    example = (Path(__file__).resolve().parents[1] / "etc" / "config.toml").read_bytes()
    return {
        "json_body": [json.dumps(body).encode(), b'{"data": "' + b"[" * 40 + b'"}'],
        "multipart": [form],
        "ndjson": [json.dumps(body).encode() + b"\n\r\n" + b'{"data":1}\n{"data":"\\ud800"}'],
        "token": [good, good.replace(b".", b"..", 1), b"eyJhbGciOiJub25lIn0.e30."],
        "claims": [claims_text.encode()],
        "jwk_set": [json.dumps(keys).encode()],
        "bus_entry": [frame, end],
        "route": [b"i c " + json.dumps(device).encode()],
        "config_file": [
            example,
            b'[server]\nport = 1\ncors_origins = ["https://a.example"]\n[api]\nnamed_keys = ["a:send:bbbbbbbbbbbb"]\n',
        ],
        "environment": [
            b"SERVER_PORT=80\nAPI_NAMED_KEYS=a:send+info:sha256:"
            + b"ab" * 32
            + b"\nJWT_LEEWAY=1.5\nLIMITS_EXEMPT=::1,10.0.0.0/8"
        ],
        "named_api_key": [b"shop:send+info:" + API_KEY.encode(), b"ops:*:sha256:" + b"ab" * 32],
        "api_key": [API_KEY.encode(), API_KEY.encode() + b"x"],
        "forwarded": [b"203.0.113.9, 10.0.0.2\n[2001:db8::1]:80\n::ffff:1.2.3.4", b"unknown, _hidden\nfor=1"],
        "logged_path": [b"a=b&%74oken=OPEN", b"data=OPEN;x&token=", b"+token=x&token%00=OPEN#token=y"],
        "frame_data": [
            b"news\0one\r\ntwo\rthree\n\nid: 7\ndata: x",
            b"\xed\xa0\x80\0\xe2\x80\xa8",
            b"\0\xef\xbb\xbfx",
        ],
    }


SEEDS = _seeds()
