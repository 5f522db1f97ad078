"""Running the programs that a build drives: each bounded in time, quiet unless it fails."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
DIST = ROOT / "dist"
PINS = ROOT / "packaging" / "pins.txt"

# The same sources give the same bytes: no order by hash, no time of the build in archives. 2024-01-01.
STEADY = {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "1704067200"}


class BuildError(Exception):
    """A build can not go on; the message says why."""


def run(
    command: Sequence[str | Path], *, seconds: float, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> str:
    """Run a program to its end and return what it printed. Raises: BuildError with the end of its output."""
    words = [str(word) for word in command]
    print("+", " ".join(words), flush=True)
    try:
        # Through a pipe and without input: programs under Wine would else look for a console.
        result = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            env={**os.environ, **STEADY, **(env or {})},
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError:
        raise BuildError(f"{words[0]} is not installed; `make tools` installs it") from None
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"not done within {seconds} s: {words}\n{_end(error.output)}") from None
    if result.returncode:
        raise BuildError(f"failed with {result.returncode}: {words}\n{_end(result.stdout)}")
    return result.stdout.decode(errors="replace")


def pip_download(folder: Path, *arguments: str | Path) -> None:
    """Download packages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, *arguments], seconds=300)


def _end(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")[-6000:]
