#!/opt/sse-broker/bin/python
"""Tell a container engine whether the broker inside answers: exit code 0 or 1. Configured as the broker itself is."""

import os
import ssl
import sys
import urllib.request


def main() -> int:
    """Ask for the API page, which is there whatever is configured: /healthz may have moved to a port of its own."""
    encrypted = bool(os.environ.get("SSE_BROKER_SERVER_TLS_CERT"))
    url = f"{'https' if encrypted else 'http'}://127.0.0.1:{os.environ.get('SSE_BROKER_SERVER_PORT', '8080')}/"
    # From inside the container; the certificate names another host.
    context = ssl._create_unverified_context() if encrypted else None
    try:
        with urllib.request.urlopen(url, timeout=3, context=context) as answer:
            return int(answer.status != 200)
    except OSError as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
