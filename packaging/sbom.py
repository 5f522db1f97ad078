"""Say what the program is made of: dist/sse-broker.cdx.json, a bill of materials in CycloneDX, of a new environment with the
program's run-time dependencies in it and nothing else.

Usage: python packaging/sbom.py, by a Python that has cyclonedx-bom (`make sbom`).
"""

import configparser
import shutil
import sys
import tempfile
import venv
from pathlib import Path

from commands import DIST, ROOT, BuildError, run

OUTPUT = DIST / "sse-broker.cdx.json"


def main() -> Path:
    """Make it and return where it lies."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    requirements = metadata["options"]["install_requires"].split("\n")
    requirements = [line for line in requirements if line.strip()]
    with tempfile.TemporaryDirectory(prefix="sbom-") as folder:
        environment, project = Path(folder, "environment"), Path(folder, "pyproject.toml")
        venv.create(environment, with_pip=False)
        python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        pip = [sys.executable, "-m", "pip", "--python", python]
        run([*pip, "install", "-q", "--no-compile", *requirements], seconds=300)
        project.write_text(_project(metadata["metadata"]["description"], requirements))
        DIST.mkdir(exist_ok=True)
        tool = shutil.which("cyclonedx-py", path=str(Path(sys.executable).parent))
        if tool is None:
            raise BuildError("cyclonedx-py is not installed; `make sbom` installs it")
        # Its own check of what it wrote takes ten times as long as the writing.
        options = [
            "--no-validate",
            "--pyproject",
            project,
            "--mc-type",
            "application",
            "--output-reproducible",
            "-o",
            OUTPUT,
        ]
        run([tool, "environment", *options, python], seconds=120)
    return OUTPUT


def _project(description: str, requirements: list[str]) -> str:
    """Return what the tool wants to know of the program itself, in the one form in which it takes it."""
    sys.path.insert(0, str(ROOT))
    from sse_broker.version import VERSION

    listed = "".join(f"  '{line.strip()}',\n" for line in requirements)
    return (
        f"[project]\nname = 'sse-broker'\nversion = '{VERSION}'\n"
        f"description = '{description}'\ndependencies = [\n{listed}]\n"
    )


if __name__ == "__main__":
    try:
        print(main())
    except BuildError as error:
        sys.exit(f"sbom: {error}")
