"""The command line: arguments in, exit codes out.

The only place that decides how the process ends, and that prints an error for people. Must not know what a server does.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from sse_broker import config
from sse_broker.config_checks import BadValue
from sse_broker.errors import BrokerError, ConfigError
from sse_broker.log_lines import one_line
from sse_broker.version import VERSION

PROGRAM = "sse-broker"

# See `commands`, which is imported for these alone.
COMMANDS = ("token", "send", "listen", "info", "kick", "check", "config")

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_CONFIGURATION = 2

_EPILOG = """\
With no configuration at all it runs on this machine alone, without Redis, and prints where its pages are.
Every key of the configuration file can be set by environment: SSE_BROKER_REDIS_ADDRS=10.0.0.5:6379 sets redis.addrs.

commands, each with its own --help:
  serve         run a broker (the default)
  token         get a token for a user
  send          send data to users, devices or everyone
  listen        print an event stream as it comes, over reconnects
  info          who is online: a user, a device, an instance, the cluster
  kick          end the streams of users and devices
  check         look over the configuration and Redis, with advice
  config show   the values in effect and where each comes from, secrets hidden
  config init   write a commented configuration with a fresh secret and key
  completion    print a script with which bash, zsh or fish complete arguments

exit codes: 0 after SIGTERM or Ctrl-C, 1 if it could not start (port taken, Redis out of reach),
2 if the configuration is wrong
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, as every other failure is said."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{message} (see {PROGRAM} --help)")
        sys.exit(EXIT_BAD_CONFIGURATION)


def main(argv: Sequence[str] | None = None, *, on_ready: Callable[[str], None] | None = None) -> int:
    """Run the program with these arguments (default: those of the process) and return the exit code.

    `on_ready` is called with the base URL once a server answers. Raises: SystemExit after --help, --version and wrong arguments, as argparse does.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] == "completion":
        return _exit_code(lambda: _completion(argv[1:]))
    if argv and argv[0] in COMMANDS:
        return _exit_code(lambda: _command(argv))
    arguments = _parser().parse_args(argv[1:] if argv[:1] == ["serve"] else argv)
    if arguments.worker:
        return _work()

    def read() -> config.Config:
        return config.load(arguments.config, os.environ, host=arguments.host, port=arguments.port)

    def run() -> None:
        try:
            _run(read, on_ready)
        except BadValue as error:
            raise config.with_place(error, arguments.config, os.environ) from None

    return _exit_code(run)


def _exit_code(program: Callable[[], int | None], complain: Callable[[str], None] | None = None) -> int:
    """Run the program and return how it ended; what went wrong is told to `complain`, or printed."""
    complain = complain or _complain
    try:
        return program() or EXIT_OK
    except KeyboardInterrupt:
        # Ctrl-C before the server took over the signal, or a second one that did not want to wait.
        return EXIT_OK
    except ConfigError as error:
        complain(error.message)
        return EXIT_BAD_CONFIGURATION
    except BrokerError as error:
        complain(error.message)
        return EXIT_FAILED
    except Exception as error:
        complain(f"unexpected {type(error).__name__}: {error}")
        if sys.flags.dev_mode:
            traceback.print_exc()
        return EXIT_FAILED


def _command(argv: Sequence[str]) -> int:
    from sse_broker import commands

    return commands.run(argv, _Parser)


def _completion(argv: Sequence[str]) -> None:
    from sse_broker import commands

    parser = _Parser(prog=f"{PROGRAM} completion", description="Print a script with which a shell completes arguments.")
    parser.add_argument("shell", help="bash, zsh, fish, tcsh or powershell")
    print(commands.completion(parser.parse_args(argv).shell, _parser()))


def _run(read: Callable[[], config.Config], on_ready: Callable[[str], None] | None) -> None:
    settings = read()
    # Late, so that --help, --version and a bad configuration need not wait for aiohttp and redis.
    if settings.server.workers > 1:
        from sse_broker import workers

        workers.run(settings, on_ready, read)
        return
    from sse_broker import server

    server.run(settings, on_ready, read)


def _work() -> int:
    """Be one of several workers: the parent says with what configuration, and tells people why if it fails."""
    from sse_broker.control_line import WorkerEnd

    try:
        line = WorkerEnd.take()
    except ConfigError as error:
        _complain(error.message)
        return EXIT_BAD_CONFIGURATION
    from sse_broker import server

    try:
        return _exit_code(
            lambda: server.run(line.config, read=lambda: line.config, line=line),
            lambda message: line.say(_flat(message)),
        )
    finally:
        line.close()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Push events to browsers and apps over Server-Sent Events.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found = " or ".join(map(str, config.candidate_files()))
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help=f"configuration file (default: {found}, if there is one)"
    )
    parser.add_argument("--host", help="address to listen on, over server.host of the file")
    parser.add_argument("--port", type=int, help="port to listen on, over server.port of the file; 0 takes a free one")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-v", "--version", action="version", version=f"{PROGRAM} {VERSION}")
    return parser


def _complain(message: str) -> None:
    if sys.stderr is not None:
        print(f"{PROGRAM}: {_flat(message)}", file=sys.stderr)


def _flat(message: str) -> str:
    return one_line(" ".join(message.split()))
