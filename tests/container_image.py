"""Carry out a Dockerfile where no container engine is at hand: each stage is this machine's disk under a layer of its own,
with this Python as the image's in /usr/local, and nothing else of what was installed by hand.

Run it in new mount and process namespaces (`NAMESPACES` of tests.machine):
`container_image.py build FOLDER` carries out every instruction; `container_image.py run FOLDER [ARGUMENT...]` becomes the
entry point of the last stage as its user, on a disk that can not be written, as the first process.
Understands what the project's Dockerfile uses, and refuses the rest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = Path(__file__).resolve().parents[1]
IMAGE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of the environment outside, a build gets only what it needs to reach the package index.
PASSED = re.compile(r"(PIP_.*|.*_PROXY|.*_proxy|SSL_CERT_.*)")
RUN_SECONDS = 300
# Where people's own things lie: not there in an image.
HIDDEN = ("home", "root", "work", "tmp", "mnt", "srv")


@dataclass
class Stage:
    """One stage: its instructions as (name, arguments), and what they have set so far."""

    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=lambda: {"PATH": IMAGE_PATH})
    folder: str = "/"
    user: str = "0:0"
    entry: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def stages(text: str) -> list[Stage]:
    """Parse a Dockerfile; each stage knows its settings. Raises: ValueError for what is not understood."""
    found: list[Stage] = []
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            found.append(Stage(arguments.partition(" AS ")[2] or str(len(found))))
        else:
            found[-1].instructions.append((name, arguments))
            _set(found[-1], name, arguments)
    return found


def _set(stage: Stage, name: str, arguments: str) -> None:
    if name == "ENV":
        for key, value in re.findall(r"(\w+)=(\S+)", arguments):
            stage.env[key] = re.sub(r"\$(\w+)", lambda match: stage.env[match[1]], value)
    elif name == "WORKDIR":
        stage.folder = arguments
    elif name == "USER":
        stage.user = arguments
    elif name == "ENTRYPOINT":
        stage.entry = json.loads(arguments)
    elif name == "HEALTHCHECK":
        stage.health = json.loads(arguments.partition("CMD ")[2])
    elif name not in ("RUN", "COPY", "EXPOSE", "STOPSIGNAL", "LABEL"):
        raise ValueError(f"{name} is not understood")


def included(path: Path) -> bool:
    """Say whether .dockerignore lets a file of the context through: the last rule that fits counts."""
    result = True
    for rule in (CONTEXT / ".dockerignore").read_text().splitlines():
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        names = [str(part) for part in (path, *path.parents)]
        fits = pattern == "*" or (pattern.removeprefix("**/") in path.parts if "**/" in pattern else pattern in names)
        if fits:
            result = rule.startswith("!")
    return result


def mount(folder: Path, stage: Stage) -> Path:
    """Mount a stage's disk and return where."""
    root = folder / stage.name / "root"
    for name in ("root", "changes", "work", "local-changes", "local-work"):
        (folder / stage.name / name).mkdir(parents=True, exist_ok=True)
    _overlay("/", root, folder / stage.name, "")
    if sys.base_prefix in ("/usr", "/usr/local"):  # it is there already; Debian's has no short name
        local = folder / stage.name / "local-changes" / "bin"
        local.mkdir(exist_ok=True)
        python = local / "python"
        if not python.is_symlink():
            python.symlink_to(f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}")
        _overlay("/usr/local", root / "usr/local", folder / stage.name, "local-")
    else:
        _overlay(f"{sys.base_prefix}:/usr/local", root / "usr/local", folder / stage.name, "local-")
    for name in HIDDEN:
        if (root / name).is_dir():
            _do("mount", "-t", "tmpfs", "none", root / name)
    _do("mount", "-t", "proc", "none", root / "proc")
    _do("mount", "--rbind", "/dev", root / "dev")
    return root


def _overlay(lower: str, where: Path, folder: Path, prefix: str) -> None:
    layers = f"lowerdir={lower},upperdir={folder}/{prefix}changes,workdir={folder}/{prefix}work"
    _do("mount", "-t", "overlay", "overlay", "-o", layers, where)


def build(folder: Path, text: str) -> None:
    """Carry out every instruction of every stage."""
    roots: dict[str, Path] = {}
    for stage in stages(text):
        root = roots[stage.name] = mount(folder, stage)
        _do("chroot", root, "ldconfig")
        (root / stage.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for name, arguments in stage.instructions:
            if name == "RUN":
                print("RUN", arguments, flush=True)
                passed = {key: value for key, value in os.environ.items() if PASSED.fullmatch(key)}
                command = ["chroot", root, "sh", "-c", f"cd {stage.folder} && {arguments}"]
                subprocess.run(command, env=passed | stage.env, timeout=RUN_SECONDS, check=True)
            elif name == "COPY":
                print("COPY", arguments, flush=True)
                _copy(arguments, root, stage.folder, roots)


def _copy(arguments: str, root: Path, folder: str, roots: dict[str, Path]) -> None:
    options = re.match(r"--from=(\w+) ", arguments)
    origin = roots[options[1]] if options else CONTEXT
    *sources, target = arguments[options.end() if options else 0 :].split()
    goal = root / Path(folder, target).as_posix().lstrip("/")
    for source in sources:
        path = origin / source.lstrip("/")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            inside = Path(file.name) if file == path else file.relative_to(path)
            if (file.is_dir() and not file.is_symlink()) or not (options or included(file.relative_to(CONTEXT))):
                continue
            to = goal / inside if path.is_dir() or target.endswith("/") else goal
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, to, follow_symlinks=False)


def run(folder: Path, text: str, arguments: list[str]) -> None:
    """Become the entry point of the last stage, with the variables of the broker from outside."""
    stage = stages(text)[-1]
    root = mount(folder, stage)
    for path in (root / "usr/local", root, *(root / name for name in HIDDEN if (root / name).is_dir())):
        _do("mount", "-o", "remount,bind,ro", path)
    user, group = stage.user.split(":")
    lock = ["--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
    command = stage.health if arguments == ["HEALTHCHECK"] else [*stage.entry, *arguments]
    env = stage.env | {key: value for key, value in os.environ.items() if key.startswith("SSE_BROKER_")}
    os.chroot(root)
    os.chdir(stage.folder)
    os.execvpe("setpriv", ["setpriv", *lock, "--inh-caps=-all", *command], env)


def _do(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True, timeout=30)


if __name__ == "__main__":
    dockerfile = (CONTEXT / "Dockerfile").read_text()
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]), dockerfile)
    else:
        run(Path(sys.argv[2]), dockerfile, sys.argv[3:])
