"""The threat model in docs/security.md: each threat names tests, and each test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = re.findall(
    r"^\| (?!threat |---)([^|]+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs/security.md").read_text(), re.M
)


def defined_in(file: str) -> set[str]:
    """Return the names of a file's tests."""
    tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return {name for name in names if name.startswith("test_")}


def test_the_table_is_read() -> None:
    assert len(ROWS) >= 25


@pytest.mark.parametrize(("threat", "measure", "named"), ROWS, ids=[row[0] for row in ROWS])
def test_each_threat_names_tests_that_exist(threat: str, measure: str, named: str) -> None:
    found = re.findall(r"`([^`]*)`", named)
    assert found, "no test is named"
    file = ""
    for one in found:
        start, _, name = one.partition("::")
        file = start or file
        assert defined_in(file), file
        assert not name or name in defined_in(file), one
    assert measure.strip()
