"""The direction of imports, as docs/design.md has it: a module imports modules of layers below its own, and outside
libraries only where the design allows them.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sse_broker"
DESIGN = ROOT / "docs" / "design.md"

# From the bottom up. A module may import those of the lines above its own, and none of its own line: so there is no cycle.
LAYERS = (
    (
        "version",
        "errors",
        "bounds",
        "client_address",
        "counters",
        "limits",
        "log_lines",
        "turns",
        "at_once",
        "clock",
        "redis_keys",
        "redis_script",
        "windows_console",
    ),
    ("traffic", "systemd", "file_limits", "example_config", "openapi", "redis_member_scripts"),
    ("frame", "presence", "redis_scripts", "config_checks", "web_multipart"),
    (
        "target",
        "envelope",
        "system_events",
        "retention",
        "stream",
        "config_source",
        "listener",
        "web_params",
        "token_keys",
    ),
    ("api_keys", "tokens"),
    ("backend", "registry", "config", "cluster"),
    ("access", "answers", "web_jwks", "delivery", "heartbeats", "memory", "redis_connection", "redis_entries", "logs"),
    ("redis_topology", "redis_watch"),
    ("redis_client",),
    ("redis_spread",),
    (
        "redis_advice",
        "redis_group",
        "redis_lane",
        "redis_bus",
        "redis_touches",
        "access_log",
        "gate",
        "web_credentials",
    ),
    ("lifecycle", "control_line", "redis_membership"),
    ("broker", "redis_backend"),
    ("pages", "web_batch", "web_responses", "metrics"),
    ("web_api", "web_ops"),
    ("web_events", "web_heads"),
    ("web",),
    ("web_door", "reload"),
    ("http_server",),
    ("slow_clients",),
    ("server", "workers"),
    ("api_client", "command_checks", "config_commands"),
    ("commands",),
    ("cli",),
    ("__main__", "desktop"),
)
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}

WEB = {
    "api_client",
    "web",
    "web_ops",
    "web_batch",
    "web_door",
    "web_events",
    "web_heads",
    "web_params",
    "web_responses",
    "web_jwks",
    "pages",
    "access_log",
    "server",
}
REDIS = {name for name in LAYER_OF if name.startswith("redis_")}
# Third-party package: the modules that may import it.
ALLOWED = {
    "aiohttp": WEB,
    "aiohttp_jinja2": {"pages"},
    "jinja2": {"pages"},
    "jwt": {"tokens", "token_keys"},
    "hiredis": {"redis_connection"},
    "redis": REDIS,
    "prometheus_client": {"metrics"},
    "shtab": {"commands"},
    "tomlkit": {"config_commands", "config_source"},
    "uvloop": {"server"},
    "winloop": {"server"},
}
# What could be run on any loop, with any library, or with none.
PURE = {
    "api_keys",
    "bounds",
    "counters",
    "errors",
    "frame",
    "limits",
    "openapi",
    "presence",
    "target",
    "envelope",
    "clock",
    "system_events",
    "retention",
    "answers",
    "client_address",
    "stream",
    "registry",
    "web_multipart",
}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


@functools.cache
def imported(name: str) -> set[str]:
    """Return the dotted names of everything that a module imports, wherever in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            assert node.module is not None
            whole = node.module == "sse_broker"
            found |= {f"sse_broker.{alias.name}" for alias in node.names} if whole else {node.module}
    return found


def own(name: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    return {dotted.split(".")[1] for dotted in imported(name) if dotted.startswith("sse_broker.")}


def outside(name: str) -> set[str]:
    """Return the top-level packages that a module imports, the standard library's among them."""
    return {dotted.split(".")[0] for dotted in imported(name)} - {"sse_broker"}


def test_each_module_stands_in_exactly_one_layer() -> None:
    assert sorted(name for layer in LAYERS for name in layer) == MODULES


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    assert not own("__init__")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_layers_below_its_own(name: str) -> None:
    wrong = sorted(other for other in own(name) if LAYER_OF[other] >= LAYER_OF[name])
    assert not wrong, f"{name} must not import {', '.join(wrong)}"


@pytest.mark.parametrize("name", MODULES)
def test_a_library_is_imported_only_where_the_design_has_it(name: str) -> None:
    wrong = sorted(
        package
        for package in outside(name)
        if package not in sys.stdlib_module_names and name not in ALLOWED.get(package, ())
    )
    assert not wrong, f"{name} must not import {', '.join(wrong)}"


def test_each_allowed_library_is_really_used() -> None:
    """A rule for a library that nothing imports any more would be a claim about nothing."""
    assert set(ALLOWED) <= {package for name in MODULES for package in outside(name)}


@pytest.mark.parametrize("name", sorted(PURE))
def test_a_pure_module_knows_no_loop_no_socket_and_no_logging(name: str) -> None:
    assert not outside(name) & {"asyncio", "socket", "logging", "threading", "os", "subprocess"}


def test_the_pure_modules_load_without_any_loop_or_library() -> None:
    """Their imports of imports too: a fresh interpreter loads them and has none of what they must not touch."""
    lines = [f"import sse_broker.{name}" for name in sorted(PURE)]
    unwanted = ["asyncio", *sorted(ALLOWED)]
    lines += ["import sys", f"print(*[name for name in {unwanted!r} if name in sys.modules])"]
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("name", ["broker", "delivery", "heartbeats", "memory", "cluster"])
def test_the_core_reaches_no_web_and_no_redis_by_any_way(name: str) -> None:
    seen: set[str] = set()
    left = {name}
    while left:
        one = left.pop()
        seen.add(one)
        left |= own(one) - seen
    assert not seen & (WEB | REDIS)


def test_the_table_of_the_design_names_every_module_and_no_other() -> None:
    """First cells of the table "module | responsibility | ..." in docs/design.md."""
    table = re.search(r"^\| module \|.*\n\|[-| :]+\|\n((?:\|.*\n)+)", DESIGN.read_text("utf-8"), re.MULTILINE)
    assert table is not None
    cells = [line.split("|")[1] for line in table[1].splitlines()]
    named = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(name for name in MODULES if name != "__main__")
