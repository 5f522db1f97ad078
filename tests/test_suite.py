"""How `make test` runs the tests: each file in one process, as fixtures of a module and what is built expect."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

from tests.broker_process import ROOT

FILES = ("tests/test_target.py", "tests/test_envelope.py", "tests/test_turns.py")
RESULT = re.compile(r"^\[(gw\d+)\].* PASSED (tests/\w+\.py)::", re.MULTILINE)


def test_each_file_is_run_by_one_process() -> None:
    """Two that started one program under Wine at the same time ended each other's: pytest-xdist had come to ignore its groups."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "MAKE", "ARGS"))}
    dry = subprocess.run(["make", "-n", "test"], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    (line,) = re.findall(r"-m pytest (.*)", dry.stdout)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *shlex.split(line), "-v", "-p", "no:cacheprovider", *FILES],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    found = set(RESULT.findall(result.stdout))
    assert sorted(file for _, file in found) == sorted(FILES), result.stdout
    assert len({process for process, _ in found}) == 2, result.stdout
