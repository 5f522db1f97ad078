"""The rpm and the deb: one tree of files as they will lie on the disk, laid out from the bundle and packed twice."""

import gzip
import os
import re
import runpy
import shutil
from pathlib import Path

from commands import BUILD, DIST, ROOT, STEADY, run

TREE = BUILD / "tree"
DESCRIPTION = "Push events to browsers and apps over Server-Sent Events"


def own_version() -> str:
    """Return the version of the program."""
    return str(runpy.run_path(str(ROOT / "sse_broker" / "version.py"))["VERSION"])


def version() -> str:
    """Return the version of the packages: SSE_BROKER_PACKAGE_VERSION stands in for the program's, to try an upgrade."""
    return os.environ.get("SSE_BROKER_PACKAGE_VERSION") or own_version()


def results() -> Path:
    """Return the folder for packages: a trial does not lie beside what is to be released."""
    folder = DIST if version() == own_version() else BUILD / "trial"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rpm() -> Path:
    """Build dist/sse-broker-VERSION-1.x86_64.rpm."""
    lay_out()
    top = BUILD / "rpm"
    shutil.rmtree(top, ignore_errors=True)
    definitions = {
        "_topdir": top,
        "_dbpath": top / "db",
        "tree": TREE,
        "broker_version": version(),
        "glibc": glibc_version(),
        "packager": "sse-broker maintainers",
        "_buildhost": "localhost",
        "use_source_date_epoch_as_buildtime": 1,
        "clamp_mtime_to_source_date_epoch": 1,
    }
    options = [word for name, value in definitions.items() for word in ("--define", f"{name} {value}")]
    run(["rpmbuild", "-bb", *options, ROOT / "rpm" / "sse-broker.spec"], seconds=300)
    (built,) = top.glob("RPMS/*/*.rpm")
    return built.replace(results() / built.name)


def deb() -> Path:
    """Build dist/sse-broker_VERSION_amd64.deb."""
    lay_out()
    # Of a configuration that the installation changes, dpkg would ask at each upgrade what to do with it: here it is no
    # file of the package but made from the example inside the bundle, and removed when the package is purged.
    (TREE / "etc" / "sse-broker" / "config.toml").unlink()
    (TREE / "etc" / "sse-broker").rmdir()
    shutil.rmtree(TREE / "var")  # systemd makes it, with its owner
    control = TREE / "DEBIAN"
    control.mkdir()
    size = sum(path.stat().st_size for path in TREE.rglob("*") if path.is_file() and not path.is_symlink()) // 1024
    fields = {
        "Package": "sse-broker",
        "Version": version(),
        "Architecture": "amd64",
        "Maintainer": "sse-broker maintainers <sse-broker@localhost>",
        "Installed-Size": str(size),
        "Depends": f"libc6 (>= {glibc_version()}), passwd",
        "Recommends": "logrotate",
        "Section": "net",
        "Priority": "optional",
        "Description": f"{DESCRIPTION}\n A daemon that keeps an event stream open to each of many clients; alone or, with "
        "Redis,\n as a cluster.",
    }
    (control / "control").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    (control / "conffiles").write_text("/etc/logrotate.d/sse-broker\n")
    for script in sorted((ROOT / "packaging" / "deb").iterdir()):
        _install(script, f"DEBIAN/{script.name}", 0o755)
    _steady_times()
    result = results() / f"sse-broker_{version()}_amd64.deb"
    run(["dpkg-deb", "--root-owner-group", "-Zzstd", "--build", TREE, result], seconds=300)
    return result


def lay_out() -> None:
    """Fill the tree."""
    shutil.rmtree(TREE, ignore_errors=True)
    shutil.copytree(DIST / "sse-broker", TREE / "usr" / "lib" / "sse-broker", symlinks=True)
    _install(ROOT / "packaging" / "first-install.sh", "usr/lib/sse-broker/first-install", 0o755)
    _install(ROOT / "etc" / "config.toml", "etc/sse-broker/config.toml", 0o640)
    _install(ROOT / "etc" / "sse-broker.logrotate", "etc/logrotate.d/sse-broker", 0o644)
    _install(ROOT / "etc" / "sse-broker.service", "usr/lib/systemd/system/sse-broker.service", 0o644)
    (TREE / "var" / "log" / "sse-broker").mkdir(parents=True)
    page = TREE / "usr" / "share" / "man" / "man1" / "sse-broker.1.gz"
    page.parent.mkdir(parents=True)
    page.write_bytes(gzip.compress((ROOT / "docs" / "man" / "sse-broker.1").read_bytes(), mtime=0))
    _complete("bash", "usr/share/bash-completion/completions/sse-broker")
    _complete("zsh", "usr/share/zsh/site-functions/_sse-broker")
    link = TREE / "usr" / "bin" / "sse-broker"
    link.parent.mkdir(parents=True)
    link.symlink_to("../lib/sse-broker/sse-broker")
    for path in (TREE, *TREE.rglob("*")):
        if not path.is_symlink() and (path.is_dir() or path.suffix == ".gz"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    _set_library_modes()


def _complete(shell: str, target: str) -> None:
    path = TREE / target
    path.parent.mkdir(parents=True)
    path.write_text(run([DIST / "sse-broker" / "sse-broker", "completion", shell], seconds=60))
    path.chmod(0o644)


def glibc_version() -> str:
    """Return the newest version of the C library that something in the bundle asks for: older systems can not run it."""
    found = {(2, 17)}
    for path in (DIST / "sse-broker").rglob("*"):
        if path.is_file() and path.open("rb").read(4) == b"\x7fELF":
            found |= {(2, int(minor)) for minor in re.findall(rb"GLIBC_2\.([0-9]+)\b", path.read_bytes())}
    return "{}.{}".format(*max(found))


def _install(source: Path, target: str, mode: int) -> None:
    path = TREE / target
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source.read_bytes())
    path.chmod(mode)


def _set_library_modes() -> None:
    """Only what is run is executable; PyInstaller makes libraries so, too."""
    for path in (TREE / "usr" / "lib" / "sse-broker").rglob("*"):
        if path.is_file() and not path.is_symlink():
            runs = path.name in ("sse-broker", "first-install") or ".so" in path.name
            path.chmod(0o755 if runs else 0o644)


def _steady_times() -> None:
    seconds = int(STEADY["SOURCE_DATE_EPOCH"])
    for path in TREE.rglob("*"):
        os.utime(path, (seconds, seconds), follow_symlinks=False)
