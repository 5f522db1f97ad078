"""The rpm and the deb, from the bundle in dist/."""

import runpy
from pathlib import Path

from commands import ROOT, BuildError


def version() -> str:
    """Return the version of the program."""
    return str(runpy.run_path(str(ROOT / "sse_broker" / "version.py"))["VERSION"])


def rpm() -> Path:
    """Build the rpm."""
    raise BuildError("no rpm yet")


def deb() -> Path:
    """Build the deb."""
    raise BuildError("no deb yet")
