"""Where a listener's token may stand in a request: a header, the query, or a cookie, which counts for pages that are trusted only.
It knows headers and nothing of what a token says.
"""

from sse_broker.access import Origins
from sse_broker.client_address import Headers
from sse_broker.errors import Forbidden, Unauthorized


def bearer(headers: Headers) -> str | None:
    """Return what stands behind `Authorization: Bearer`, if anything does (RFC 6750, section 2.1)."""
    scheme, _, credentials = headers.get("Authorization", "").partition(" ")
    return credentials.strip() or None if scheme.lower() == "bearer" else None


def listener_token(headers: Headers, in_query: str | None, cookie: str, origins: Origins) -> str:
    """Return the token: headers win over the query, and both over the cookie of this name (empty: none is looked at).

    Raises: Unauthorized without one; Forbidden when a page that is not trusted came with its visitor's cookie.
    """
    token: str | None = headers.get("X-SSE-TOKEN") or bearer(headers) or in_query
    if not token and cookie:
        token = _cookie(headers, cookie)
        if token:
            check_page(headers, origins)
    if not token:
        raise Unauthorized("'token' is missing")
    return token


def check_page(headers: Headers, origins: Origins) -> None:
    """Refuse a request that a browser makes for a page of another site: it carries its visitor's cookies like any other.

    `Origin` says so where a page may read the answer; `Sec-Fetch-Site` also for an image or a link, which send no Origin.
    Raises: Forbidden.
    """
    origin = headers.get("Origin", "")
    if origin:
        if not origins.trusts(origin, headers.get("Host", "")):
            raise Forbidden("the page's origin is not one that may use the cookie: see server.cors_origins")
    elif headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("the cookie counts for requests of this site's own pages only")


def _cookie(headers: Headers, name: str) -> str | None:
    """Return the value of a cookie (RFC 6265, section 4.2). Raises: Unauthorized when it comes with several values."""
    values = set()
    for line in headers.getall("Cookie", ()):
        for pair in line.split(";"):
            key, equals, value = pair.strip(" \t").partition("=")
            if equals and key == name:
                values.add(value.strip('"'))
    if len(values) > 1:
        # Somebody on a neighbouring domain set another one; the browser does not tell which is ours.
        raise Unauthorized(f"the cookie {name} came with several values")
    return values.pop() or None if values else None
