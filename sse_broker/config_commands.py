"""`config show` and `config init`: the configuration in effect with its sources, and a new commented file."""

import argparse
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import tomlkit

from sse_broker import config
from sse_broker.errors import StartError
from sse_broker.example_config import example_config

HIDDEN = "(set, hidden)"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `config`."""
    parser.add_argument("action", choices=("show", "init"), help="show what is in effect, or write a new file")
    parser.add_argument("file", nargs="?", type=Path, help="init: the file to write (default: config.toml)")
    parser.add_argument("--json", action="store_true", help="show: print JSON")


def run(given: argparse.Namespace) -> int:
    """Do what was asked. Raises: ConfigError, StartError."""
    return _init(given.file or Path("config.toml")) if given.action == "init" else _show(given)


def _show(given: argparse.Namespace) -> int:
    settings, sources = config.load_with_sources(given.config)
    secret = config.secret_keys()
    values = {
        f"{table}.{key}": getattr(getattr(settings, table), key)
        for table, keys in config.schema().items()
        for key in keys
    }
    rows = [(name, HIDDEN if value and name in secret else _plain(value)) for name, value in values.items()]
    if given.json:
        print(json.dumps({name: {"value": value, "source": sources.get(name, "default")} for name, value in rows}))
        return 0
    texts = [(name, json.dumps(value, ensure_ascii=False), sources.get(name, "default")) for name, value in rows]
    widths = [max(len(row[column]) for row in texts) for column in (0, 1)]
    for name, value, source in texts:
        print(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}")
    return 0


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _init(path: Path) -> int:
    document = tomlkit.parse(example_config())
    document["jwt"]["secret"] = secrets.token_hex(32)
    document["api"]["keys"] = [secrets.token_hex(32)]
    try:
        # For its owner alone from the first moment on, and never over a file that is there.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(tomlkit.dumps(document))
    except FileExistsError:
        raise StartError(f"{path} is there already; name another file") from None
    except OSError as error:
        raise StartError(f"{path} can not be written: {error.strerror}") from None
    print(f"{path} is written, with a fresh secret and a fresh API key", file=sys.stderr)
    return 0
