"""The commands beside `serve`, for people at a shell: they speak to a running broker over its HTTP API, as any back end does.
`command_checks` and `config_commands` have those that look at a configuration. It knows arguments and how to print, and
nothing of how a broker works inside.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sse_broker import command_checks, config, config_commands
from sse_broker.api_client import ApiClient
from sse_broker.errors import StartError


def run(arguments: Sequence[str], parser_class: type[argparse.ArgumentParser]) -> int:
    """Run a command and return the exit code. Raises: BrokerError, and SystemExit as argparse does."""
    name, *rest = arguments
    add_arguments, command, text = COMMANDS[name]
    parser = parser_class(prog=f"sse-broker {name}", description=text, allow_abbrev=False)
    _fill(parser, add_arguments)
    return command(parser.parse_args(rest))


def completion(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return a script with which a shell completes what `parser`, that of the program itself, and every command take.

    Raises: StartError.
    """
    try:
        import shtab
    except ImportError:
        raise StartError(
            "the completion of shells needs the package shtab: pip install 'sse-broker[completion]'"
        ) from None
    if shell not in shtab.SUPPORTED_SHELLS:
        raise StartError(f"there is no completion for '{shell}'; there is for {', '.join(shtab.SUPPORTED_SHELLS)}")
    below = parser.add_subparsers()
    for name, (add_arguments, _, text) in COMMANDS.items():
        _fill(below.add_parser(name, help=text, description=text), add_arguments)
    for one in (parser, *below.choices.values()):
        for action in one._actions:
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's way to say what a value is
    return str(shtab.complete(parser, shell))


def _fill(parser: argparse.ArgumentParser, add_arguments: Callable[[argparse.ArgumentParser], None]) -> None:
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="configuration file")
    add_arguments(parser)


def _client_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="where the broker is, http://host:port (default: as configured)")
    parser.add_argument("--key", help="API key (default: the first that is configured and may do this)")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _token_arguments(parser: argparse.ArgumentParser) -> None:
    _client_arguments(parser)
    parser.add_argument("uid", help="the user")
    parser.add_argument("--device", help="bind the token to this device")
    parser.add_argument("--ttl", type=float, metavar="SECONDS", help="how long it is good")


def _send_arguments(parser: argparse.ArgumentParser) -> None:
    _client_arguments(parser)
    parser.add_argument("data", help="the data, text; - reads it from standard input")
    parser.add_argument("--uid", action="append", default=[], help="a user; may be given several times")
    parser.add_argument("--device", action="append", default=[], help="a device; may be given several times")
    parser.add_argument("--all", action="store_true", help="send to everyone")
    parser.add_argument("--event", default="", help="the event's name")


def _listen_arguments(parser: argparse.ArgumentParser) -> None:
    _client_arguments(parser)
    parser.add_argument("uid", help="the user")
    parser.add_argument("--device", default="sse-broker listen", help="the device's name (default: %(default)s)")
    parser.add_argument("--last-id", type=int, metavar="ID", help="the last frame id that you have")
    parser.add_argument("--count", type=int, metavar="N", help="stop after N frames")


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    _client_arguments(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--uid", help="a user")
    which.add_argument("--device", help="a device")
    which.add_argument("--ip", help="an instance, by address with or without port")


def _kick_arguments(parser: argparse.ArgumentParser) -> None:
    _client_arguments(parser)
    parser.add_argument("--uid", action="append", default=[], help="a user; may be given several times")
    parser.add_argument("--device", action="append", default=[], help="a device; may be given several times")
    parser.add_argument("--data", default="", help="text that is handed to the devices")


def _token(arguments: argparse.Namespace) -> int:
    fields = {"uid": arguments.uid, "device": arguments.device, "ttl": arguments.ttl}
    return _call(arguments, "/token", fields, str)


def _send(arguments: argparse.Namespace) -> int:
    if arguments.all == bool(arguments.uid or arguments.device):
        raise StartError("say to whom: --uid, --device, or --all for everyone")
    data = sys.stdin.read() if arguments.data == "-" else arguments.data
    fields = {"data": data, "event": arguments.event, "uid": arguments.uid or None, "device": arguments.device or None}
    return _call(arguments, "/send", fields, lambda count: f"addressed to {count} online devices")


def _kick(arguments: argparse.Namespace) -> int:
    if not arguments.uid and not arguments.device:
        raise StartError("say whom: --uid or --device")
    fields = {"uid": arguments.uid or None, "device": arguments.device or None, "data": arguments.data}
    return _call(arguments, "/kick", fields, lambda count: f"kicked {count} devices")


def _info(arguments: argparse.Namespace) -> int:
    fields = {"uid": arguments.uid, "device": arguments.device, "ip": arguments.ip}
    return _call(arguments, "/info", fields, _outline)


def _call(arguments: argparse.Namespace, path: str, fields: Mapping[str, Any], as_text: Callable[[Any], str]) -> int:
    async def call(client: ApiClient) -> None:
        result = await client.call(path, {name: value for name, value in fields.items() if value is not None})
        print(json.dumps(result, ensure_ascii=False) if arguments.json else as_text(result))

    return _with_client(arguments, path.removeprefix("/"), call)


def _listen(arguments: argparse.Namespace) -> int:
    async def listen(client: ApiClient) -> None:
        left = arguments.count
        async for event in client.events(arguments.uid, arguments.device, arguments.last_id):
            if arguments.json:
                print(
                    json.dumps({"id": event.id, "event": event.name, "data": event.data}, ensure_ascii=False),
                    flush=True,
                )
            else:
                number = "" if event.id is None else f"{event.id}  "
                print(f"{number}{event.name}: {event.data}", flush=True)
            if left is not None and event.id is not None:
                left -= 1
                if left <= 0:
                    return

    return _with_client(arguments, "token", listen)


def _with_client(arguments: argparse.Namespace, scope: str, use: Callable[[ApiClient], Awaitable[None]]) -> int:
    url, key = arguments.url, arguments.key
    if not url or not key:
        settings = config.load(arguments.config)
        url = url or _url(settings)
        key = key or _key(settings, scope)

    async def main() -> None:
        async with ApiClient(url, key) as client:
            await use(client)

    asyncio.run(main())
    return 0


def _key(settings: config.Config, scope: str) -> str:
    """Return the first key that opens an endpoint; empty without one. A key of which there is only the hash is no use."""
    keys = [key for _, key in settings.api.parsed_keys]
    return next((key.secret for key in keys if key.secret and scope in key.caller.scopes), "")


def _url(settings: config.Config) -> str:
    server = settings.server
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(server.host, server.host)
    return f"{'https' if server.tls_cert else 'http'}://{host}:{server.port}"


def _outline(value: Any, depth: int = 0) -> str:
    """Return a result of /info as indented lines."""
    pad = "  " * depth
    lines = []
    for name, one in value.items():
        if isinstance(one, list):
            lines.append(f"{pad}{name}:" if one else f"{pad}{name}: none")
            lines += [_outline(item, depth + 1) + "\n" if len(one) > 1 else _outline(item, depth + 1) for item in one]
        else:
            lines.append(f"{pad}{name}: {str(one).lower() if isinstance(one, bool) else one}")
    return "\n".join(lines)


COMMANDS: Mapping[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int], str]] = {
    "token": (_token_arguments, _token, "Get a token with which a user's device may open a stream."),
    "send": (_send_arguments, _send, "Send data to users, devices or everyone."),
    "listen": (_listen_arguments, _listen, "Print an event stream as it comes; goes on after reconnects."),
    "info": (_info_arguments, _info, "Tell who is online; without arguments, about the cluster."),
    "kick": (_kick_arguments, _kick, "End the streams of users and devices and refuse their tokens from now on."),
    "check": (command_checks.arguments, command_checks.run, "Look over the configuration and Redis, with advice."),
    "config": (config_commands.arguments, config_commands.run, "Show the configuration in effect, or write a new one."),
}
