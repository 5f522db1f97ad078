"""What the program is made of: the bill of materials, the licences, and the oldest versions that setup.cfg allows."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.broker_process import ROOT, BrokerProcess
from tests.redis_servers import RedisServer
from tests.smoke import smoke

LICENCES = ROOT / "docs" / "licences.md"
OLDEST = os.environ.get("TEST_OLDEST", "")
# Those that lean most on what libraries promise nobody: the way past aiohttp's handlers, the errors and replies of Redis.
SMOKE = "test_the_oldest_versions_pass_the_smoke_suite"
LEANING = ["tests/test_web_door.py", "tests/test_redis_lane.py", "tests/test_config_source.py"]


def requirements() -> list[Requirement]:
    """Return the run-time dependencies for this system, as setup.cfg has them."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    listed = [Requirement(line) for line in metadata["options"]["install_requires"].splitlines() if line.strip()]
    return [one for one in listed if one.marker is None or one.marker.evaluate()]


def closure() -> dict[str, str]:
    """Return the licence of each package that the program loads, theirs included, by its name."""
    found: dict[str, str] = {}
    waiting = [one.name for one in requirements()]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found[name] = licence(name)
        needs = [Requirement(text) for text in distribution(name).requires or ()]
        waiting += [one.name for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def licence(name: str) -> str:
    """Return what a package says of its licence."""
    about = distribution(name).metadata
    stated = about.get("License-Expression") or about.get("License") or ""
    classes = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or () if "License ::" in text]
    return stated if stated and "\n" not in stated else ", ".join(classes)


def listed() -> dict[str, tuple[str, str]]:
    """Return licence and remark of each package in the document."""
    rows = re.findall(r"^\| (\S+) \| ([^|]+) \| ([^|]*) \|$", LICENCES.read_text("utf-8"), re.MULTILINE)
    return {name: (licence, remark.strip()) for name, licence, remark in rows if name not in ("package", "---")}


def test_every_package_that_is_loaded_has_its_licence_in_the_document() -> None:
    document = listed()
    for name, says in closure().items():
        assert name in document, f"docs/licences.md lacks: | {name} | {says} | |"
        assert document[name][0] == says, name


def test_what_the_document_has_beside_them_says_when_it_is_loaded() -> None:
    loaded = closure()
    for name, (says, remark) in listed().items():
        assert name in loaded or remark, name
        try:
            assert licence(name) == says
        except PackageNotFoundError:
            assert remark


def test_the_bill_of_materials_names_each_package_and_nothing_else() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "packaging" / "sbom.py"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    bill = json.loads(Path(result.stdout.splitlines()[-1]).read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "sse-broker")
    assert {canonicalize_name(one["name"]) for one in bill["components"]} == set(closure())
    assert all(one["licenses"] and one["purl"].endswith(f"@{one['version']}") for one in bill["components"])
    (root,) = (one for one in bill["dependencies"] if one["ref"] == bill["metadata"]["component"]["bom-ref"])
    direct = {canonicalize_name(ref.partition("==")[0]) for ref in root["dependsOn"]}
    assert direct == {canonicalize_name(one.name) for one in requirements()}


# --- the oldest versions: `make test` has the newest ---


def oldest() -> list[str]:
    """Return each dependency at its lower bound."""
    pins = []
    for one in requirements():
        (lowest,) = (bound.version for bound in one.specifier if bound.operator == ">=")
        assert any(bound.operator == "<" for bound in one.specifier), one
        pins.append(f"{one.name}=={lowest}")
    return pins


@pytest.mark.timeout(400)
def test_it_works_with_the_oldest_versions_that_are_allowed(tmp_path: Path) -> None:
    """They come first on the path of another run of some test files; the tests' own packages stay as they are."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", str(tmp_path), *oldest()]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=200)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{SMOKE}", *LEANING],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "TEST_OLDEST": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-6000:]


if OLDEST:

    async def test_the_oldest_versions_pass_the_smoke_suite(redis_server: RedisServer) -> None:
        for pin in oldest():
            name, _, version = pin.partition("==")
            assert (distribution(name).version + ".0").startswith(version), "the newest is loaded"
        async with BrokerProcess(redis=redis_server) as broker:
            await smoke(broker)
