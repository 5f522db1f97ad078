"""Where configured values come from: the TOML file, the environment, the command line.

Gathers plain values of the right type by table and key, each with the place where it was written, so that a message
about a value can name that place. Knows the keys only through the schema that it is given, and no default.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from sse_broker.config_checks import quoted
from sse_broker.errors import ConfigError

ENVIRONMENT_PREFIX = "SSE_BROKER_"

Value = str | int | float | bool | tuple[str, ...]
Schema = Mapping[str, Mapping[str, Any]]
"""The type of each key by table: str, int, float, bool or tuple[str, ...]."""

# Kubernetes tells every container of a Service called sse-broker (or sse-broker-redis, ...) where that is, in variables
# that begin like ours; Docker's links do the same. They are no configuration and no mistake.
_ORCHESTRATOR_NAME = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_ORCHESTRATOR_PORT = re.compile(r"(tcp|udp|sctp)://.*")
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class Setting:
    """Hold one value and the place where it was written: the file's path, a variable or an option."""

    value: Value
    source: str


class Settings:
    """Collect settings; what is added later wins."""

    __slots__ = ("_found", "_schema")

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._found: dict[str, Setting] = {}

    def table(self, name: str) -> dict[str, Any]:
        """Return the values set for one table by key."""
        return {key: self._found[f"{name}.{key}"].value for key in self._schema[name] if f"{name}.{key}" in self._found}

    def source(self, name: str) -> str | None:
        """Return where `table.key` was set, None if nowhere."""
        setting = self._found.get(name)
        return setting.source if setting else None

    def add_option(self, option: str, name: str, value: Value) -> None:
        """Take a value of the command line for `table.key`."""
        self._found[name] = Setting(value, option)

    def add_file(self, path: Path) -> None:
        """Take the values of a TOML file.

        Raises: FileNotFoundError or NotADirectoryError if there is none; ConfigError for one that can not be read, is
        not TOML or holds what the schema does not know.
        """
        for table_name, table in _parsed_toml(path).items():
            if table_name not in self._schema:
                raise ConfigError(f"{path}: {self._unknown_table(table_name, table)}")
            if not isinstance(table, dict):
                raise ConfigError(f"{path}: {table_name} must be a table: write [{table_name}] above its keys")
            for key, value in table.items():
                name = f"{table_name}.{key}"
                if key not in self._schema[table_name]:
                    raise ConfigError(f"{path}: unknown key {_shown(name)}{self._did_you_mean(table_name, key)}")
                self._found[name] = Setting(_typed(str(path), name, value, self._schema[table_name][key]), str(path))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Take `SSE_BROKER_<TABLE>_<KEY>` variables.

        Raises: ConfigError for a value of the wrong type, or a variable that begins so and names no key: that is a
        typing mistake which nobody would notice.
        """
        names = {
            f"{ENVIRONMENT_PREFIX}{table}_{key}".upper(): (table, key)
            for table, keys in self._schema.items()
            for key in keys
        }
        for variable in sorted(name for name in environ if name.startswith(ENVIRONMENT_PREFIX)):
            text = environ[variable]
            if _is_from_orchestrator(variable, text):
                continue
            if variable not in names:
                raise ConfigError(f"{_shown(variable)}: unknown variable{_nearest(variable, names)}")
            table, key = names[variable]
            value = _from_text(variable, f"{table}.{key}", text, self._schema[table][key])
            self._found[f"{table}.{key}"] = Setting(value, variable)

    def _unknown_table(self, name: str, value: object) -> str:
        if isinstance(value, dict | list):
            return f"unknown table {_shown(name)}{_nearest(name, self._schema)}"
        homes = [table for table, keys in self._schema.items() if name in keys]
        return f"key {_shown(name)} stands in no table" + (f"; write it under [{homes[0]}]" if homes else "")

    def _did_you_mean(self, table: str, key: str) -> str:
        for other, keys in self._schema.items():
            if key in keys:
                return f"; did you mean {other}.{key}?"
        return _nearest(key, self._schema[table], f"{table}.")


def _parsed_toml(path: Path) -> dict[str, Any]:
    try:
        # Editors on Windows put a byte order mark in front.
        return tomlkit.parse(path.read_bytes().decode("utf-8-sig")).unwrap()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ConfigError(f"{path}: can not be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except (TOMLKitError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {' '.join(str(error).split())}") from error


def _typed(source: str, name: str, value: object, kind: Any) -> Value:
    """Return a value of TOML as the schema wants it; only a whole number may stand for a duration."""
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if kind in (str, int, float, bool) and type(value) is kind:
        return _text(source, name, value) if isinstance(value, str) else value  # type: ignore[return-value]
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(_text(source, name, item) for item in value)
    raise ConfigError(f"{source}: {name} must be {_kind_name(kind)}, not {_type_name(value)}")


def _from_text(source: str, name: str, text: str, kind: Any) -> Value:
    stripped = text.strip()
    if kind is str:
        return _text(source, name, text)
    if kind is bool and stripped.lower() in _TRUE | _FALSE:
        return stripped.lower() in _TRUE
    if kind is int and re.fullmatch(r"[+-]?[0-9]{1,18}", stripped):
        return int(stripped)
    if kind is float and re.fullmatch(r"[+-]?[0-9]{1,18}(\.[0-9]{0,18})?", stripped):
        return float(stripped)
    if kind == tuple[str, ...]:
        return tuple(_text(source, name, item.strip()) for item in text.split(",") if item.strip())
    raise ConfigError(f"{source}: {name} must be {_kind_name(kind)}")


def _text(source: str, name: str, text: str) -> str:
    # Bytes of the environment that are not UTF-8 arrive as surrogates.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"{source}: {name} holds a NUL or what is not UTF-8")
    return text


def _is_from_orchestrator(variable: str, text: str) -> bool:
    if _ORCHESTRATOR_NAME.fullmatch(variable):
        return True
    return variable.endswith("_PORT") and _ORCHESTRATOR_PORT.fullmatch(text) is not None


def _kind_name(kind: Any) -> str:
    if kind == tuple[str, ...]:
        return "a list of texts"
    return {str: "text in quotes", int: "a whole number", float: "a number of seconds", bool: "true or false"}[kind]


def _type_name(value: object) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a fraction", str: "text", dict: "a table"}
    if type(value) in names:
        return names[type(value)]
    return "a list of other things" if isinstance(value, list) else "a date or time"


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name[:200], list(known), n=1)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def _shown(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]{1,80}", name) else quoted(name)
