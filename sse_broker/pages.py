"""The two pages, `/` and `/demo`, with their assets: read and rendered once at start, then served from memory. Owns
their routes, their caching and their security headers. Must not know the broker: the pages use the public HTTP API only.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import aiohttp_jinja2
import jinja2
from aiohttp import ETag, hdrs, web

from sse_broker.version import VERSION

_PACKAGE = Path(__file__).resolve().parent

_CONTENT_TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

# Everything comes from this origin. No inline script, style or markup attribute is allowed, so that text from users
# could not run even where it was inserted as markup by mistake. `base-uri` keeps relative addresses ours.
_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

# A page is asked for again each time, which costs a 304: it names the assets by their digest, so those never grow old.
_REVALIDATE = "no-cache"
_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class _Document:
    """Bytes ready to be served, with what the headers say about them."""

    body: bytes
    content_type: str
    etag: str


def templates_path(package: Path = _PACKAGE) -> Path:
    """Return the folder of the pages: in the installed or bundled package, else beside it, as in a checkout.

    Raises: FileNotFoundError when neither is there.
    """
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / "base.html").is_file():
            return folder
    raise FileNotFoundError(f"the page templates are neither in {package} nor beside it")


def setup(app: web.Application) -> None:
    """Add the API page, the demo page and their assets to the routes of `app`.

    Raises: FileNotFoundError when the templates are not installed.
    """
    folder = templates_path()
    assets = _read_assets(folder / "static")
    digest = hashlib.sha256(b"".join(asset.body for asset in assets.values())).hexdigest()[:16]

    _serve(app, "/", _render(folder, "index.html", root=".", digest=digest))
    _serve(app, "/demo", _render(folder, "demo.html", root=".", digest=digest))
    _serve(app, "/static/demo.html", _render(folder, "demo.html", root="..", digest=digest))
    for name, asset in assets.items():
        _serve(app, f"/static/{name}", asset, digest)


def _read_assets(folder: Path) -> Mapping[str, _Document]:
    paths = sorted(path for path in folder.iterdir() if path.suffix in _CONTENT_TYPES)
    return {path.name: _document(path.read_bytes(), _CONTENT_TYPES[path.suffix]) for path in paths}


@cache
def environment(folder: Path) -> jinja2.Environment:
    """Return what renders the templates of a folder. Compiling them is what takes time, 40 ms, so it is done once however
    many applications a process has: as files that do not change give one result, nobody can tell it from a new one.
    """
    return aiohttp_jinja2.setup(
        web.Application(), loader=jinja2.FileSystemLoader(folder), undefined=jinja2.StrictUndefined
    )


def _render(folder: Path, template: str, root: str, digest: str) -> _Document:
    """Render a page; `root` leads from the page to `/`, so that the pages also work below a path of a proxy."""
    text = environment(folder).get_template(template).render(root=root, digest=digest, version=VERSION)
    return _document(text.encode(), "text/html")


def _document(body: bytes, content_type: str) -> _Document:
    return _Document(body, content_type, hashlib.sha256(body).hexdigest()[:16])


def _serve(app: web.Application, path: str, document: _Document, digest: str | None = None) -> None:
    """Answer GET and HEAD of `path` with `document`; under the query `v=<digest>` it may be kept for good."""

    async def handle(request: web.Request) -> web.Response:
        known = request.if_none_match or ()
        if ETag(document.etag) in known:
            response = web.Response(status=304)
        else:
            response = web.Response(body=document.body, content_type=document.content_type, charset="utf-8")
        response.etag = document.etag
        response.headers.update(_SECURITY_HEADERS)
        lasting = digest is not None and request.query.get("v") == digest
        response.headers[hdrs.CACHE_CONTROL] = _FOREVER if lasting else _REVALIDATE
        return response

    app.router.add_get(path, handle)
