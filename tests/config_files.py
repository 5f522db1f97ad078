"""Configurations for the tests of the configuration: writing one, loading it, and the message when it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sse_broker.config import Config, load
from sse_broker.errors import ConfigError

EXAMPLE = Path(__file__).resolve().parents[1] / "etc" / "config.toml"
SECRET = "d2f0c1b7a95e48336b8f7e1c0a4d9b52"
API_KEY = "k7Rw2pXn9vBq4TzL"
EXPOSED = f'[server]\nhost = "0.0.0.0"\n[jwt]\nsecret = "{SECRET}"\n[api]\nkeys = ["{API_KEY}"]\n'


def loaded(file: Path, text: str, environ: Mapping[str, str] | None = None, **options: Any) -> Config:
    """Write a file and load it, with no other environment than the one given."""
    file.write_text(text, "utf-8")
    return load(file, environ or {}, **options)


def refusal(file: Path, text: str, environ: Mapping[str, str] | None = None, **options: Any) -> str:
    """Return the message with which a configuration is refused, after checking that it is one line."""
    with pytest.raises(ConfigError) as caught:
        loaded(file, text, environ, **options)
    assert "\n" not in caught.value.message
    assert caught.value.message == str(caught.value)
    return caught.value.message


def outcome(file: Path, environ: Mapping[str, str]) -> Config | str:
    """Return the configuration, or the message with which it is refused."""
    try:
        return load(file, environ)
    except ConfigError as error:
        return error.message
