"""The keys that an issuer of tokens publishes as a JWK set: fetched at the start and again now and then, at once when a token
names an unknown one, and kept while nobody answers there. It knows HTTP and nothing of tokens.
"""

import asyncio
import logging
import time

from aiohttp import ClientError, ClientSession, ClientTimeout

from sse_broker.token_keys import PublicKeys, parse_jwk_set

log = logging.getLogger(__name__)

FETCH_SECONDS = 5.0
MAX_BYTES = 512 * 1024
# Tokens that name unknown keys can be made by anybody: they must not become requests to somebody else's server.
MIN_PAUSE_SECONDS = 10.0
RETRY_SECONDS = 30.0


class JwkSet:
    """Keeps the fetched keys of `keys` fresh. `start` and `close` own its task and its connections."""

    def __init__(self, url: str, keys: PublicKeys, refresh_seconds: float) -> None:
        self._url = url
        self._keys = keys
        self._refresh_seconds = refresh_seconds
        self._fetching: asyncio.Task[bool] | None = None
        self._fetched_at = -MIN_PAUSE_SECONDS
        self._task: asyncio.Task[None] | None = None
        self._session: ClientSession | None = None
        self.failures = 0

    async def start(self) -> None:
        """Fetch for the first time, which may fail, and go on in the background."""
        self._session = ClientSession(timeout=ClientTimeout(total=FETCH_SECONDS))
        good = await self._fetch()
        self._task = asyncio.create_task(self._run(good), name="jwk set")

    async def close(self) -> None:
        """End the task and the connections."""
        tasks = [task for task in (self._task, self._fetching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def refresh(self) -> None:
        """Fetch again, unless that was done a moment ago; who asks meanwhile waits for the same answer."""
        if self._fetching is None and time.monotonic() - self._fetched_at < MIN_PAUSE_SECONDS:
            return
        await self._fetch()

    async def _run(self, good: bool) -> None:
        while True:
            await asyncio.sleep(self._refresh_seconds if good else min(RETRY_SECONDS, self._refresh_seconds))
            good = await self._fetch()

    async def _fetch(self) -> bool:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch_once(), name="fetch of the jwk set")
        # One that asked and left must not end the fetch for the others.
        return await asyncio.shield(self._fetching)

    async def _fetch_once(self) -> bool:
        try:
            self._keys.replace_fetched(parse_jwk_set(await self._read()))
        except (ClientError, OSError, TimeoutError, ValueError) as error:
            self.failures += 1
            reason = str(error) or type(error).__name__
            log.warning("jwt.jwks_url can not be fetched, the last keys (%d) stay: %s", len(self._keys), reason)
            return False
        except Exception:  # it must neither end the refreshing nor fail whoever brought a token
            self.failures += 1
            log.exception("jwt.jwks_url can not be read, the last keys (%d) stay", len(self._keys))
            return False
        finally:
            self._fetched_at = time.monotonic()
            self._fetching = None
        return True

    async def _read(self) -> bytes:
        assert self._session is not None
        # No redirects: who may answer is what the configuration says.
        async with self._session.get(self._url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"the answer is {response.status}")
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > MAX_BYTES:
                    raise ValueError(f"the answer is longer than {MAX_BYTES} bytes")
        return bytes(body)
