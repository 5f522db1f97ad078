"""nginx, HAProxy and Caddy with the very configurations of docs/proxies.md. Knows nothing of brokers but their addresses."""

from __future__ import annotations

import re
import shutil
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.processes import ChildProcess
from tests.redis_servers import make_certificate
from tests.waiting import free_port, port_is_free, until

DOCUMENT = Path(__file__).parents[1] / "docs" / "proxies.md"
# What the document names the proxy and the brokers, and its two times: for a silent stream, for a client that vanished.
PROXY, BROKERS = "10.0.0.2", ("10.0.0.11:8080", "10.0.0.12:8080")
IDLE, VANISHED = "60s", "45s"
NGINX_FRAME = """
daemon off; pid FOLDER/nginx.pid; error_log stderr warn; user root;
events { worker_connections 1024; }
http {
    client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy; fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi; scgi_temp_path FOLDER/scgi;
    include FOLDER/sse-broker.conf;
}
"""
CADDY_FRAME = "{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n\tskip_install_trust\n}\n"


def block(language: str) -> str:
    """Return the one block of the document in this language, or for this proxy."""
    language = {"caddy": "caddyfile"}.get(language, language)
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return str(found)


class Proxy:
    """One proxy in front of two brokers, on a free port with TLS; ended by its pid. Not tied to an event loop.

    `times` take the place of the document's IDLE and VANISHED.
    """

    def __init__(self, kind: str, brokers: Sequence[str], times: Mapping[str, str] | None = None) -> None:
        self.kind, self.port = kind, free_port()
        self._folder = tempfile.TemporaryDirectory(prefix=f"{kind}-")
        self.folder = Path(self._folder.name)
        self.access_log = self.folder / "access.log"
        make_certificate(self.folder)
        names = ("server.crt", "server.key")
        (self.folder / "server.pem").write_text("".join((self.folder / name).read_text() for name in names))
        text = changed(block(kind), dict(zip(BROKERS, brokers, strict=True)) | self._changes())
        for time, quick in (times or {}).items():
            assert time in text or time != IDLE
            text = text.replace(time, quick)
        command = getattr(self, f"_{kind}")(text)
        self.process = ChildProcess(command, self.folder / "output.txt")

    @property
    def base_url(self) -> str:
        """Where it answers."""
        return f"https://localhost:{self.port}"

    @property
    def tls(self) -> ssl.SSLContext:
        """A client's context that trusts its certificate."""
        return ssl.create_default_context(cafile=str(self.folder / "ca.crt"))

    async def start(self) -> None:
        """Wait until it listens."""

        def listens() -> bool:
            assert self.process.running, self.process.text()
            return not port_is_free(self.port)

        await until(listens, what=self.kind)

    async def stop(self) -> None:
        """End it and remove its files."""
        await self.process.kill()  # asked nicely, they would wait for their streams
        self._folder.cleanup()

    def logs(self) -> str:
        """Return all that it has logged."""
        return self.process.text() + (self.access_log.read_text() if self.access_log.exists() else "")

    def _changes(self) -> Mapping[str, str]:
        """What is another here: certificate, port, and where logs go."""
        folder, here = self.folder, f"127.0.0.1:{self.port}"
        certificate = {
            "/etc/ssl/push.example.com.crt": f"{folder}/server.crt",
            "/etc/ssl/push.example.com.key": f"{folder}/server.key",
        }
        if self.kind == "nginx":
            files = {"/var/log/nginx/sse-broker.log": str(self.access_log)}
            return certificate | files | {"listen 443": f"listen {here}", "push.example.com;": "localhost;"}
        if self.kind == "haproxy":
            files = {"/etc/ssl/push.example.com.pem": f"{folder}/server.pem"}
            return files | {"bind :443": f"bind {here}", "log /dev/log": "log stdout format raw"}
        return certificate | {"push.example.com {": f"https://localhost:{self.port} {{"}

    def _nginx(self, text: str) -> list[str]:
        (self.folder / "sse-broker.conf").write_text(text)
        (self.folder / "nginx.conf").write_text(NGINX_FRAME.replace("FOLDER", str(self.folder)))
        return [program("nginx"), "-c", f"{self.folder}/nginx.conf", "-e", "stderr"]

    def _haproxy(self, text: str) -> list[str]:
        (self.folder / "haproxy.cfg").write_text(text)
        return [program("haproxy"), "-db", "-f", f"{self.folder}/haproxy.cfg"]

    def _caddy(self, text: str) -> list[str]:
        (self.folder / "Caddyfile").write_text(CADDY_FRAME + text)
        place = [f"XDG_DATA_HOME={self.folder}", f"XDG_CONFIG_HOME={self.folder}"]
        return [
            "env",
            *place,
            program("caddy"),
            "run",
            "--config",
            f"{self.folder}/Caddyfile",
            "--adapter",
            "caddyfile",
        ]


def changed(text: str, changes: Mapping[str, str]) -> str:
    """Return the text with each change made; the longest first, so that none hits within another. All must be found."""
    for old in sorted(changes, key=len, reverse=True):
        assert old in text, f"the document does not have {old!r}"
        text = text.replace(old, changes[old])
    return text


def program(name: str) -> str:
    """Return where a program lies."""
    path = shutil.which(name)
    assert path, f"{name} is missing: sh tests/install_tools.sh"
    return path
