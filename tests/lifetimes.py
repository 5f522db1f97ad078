"""What tests start and must stop, whatever happens: within a test, and for a module or a session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar


class Startable(Protocol):
    """Something that is not tied to one event loop, so that plain fixtures of wide scope can own it."""

    async def start(self) -> None:
        """Start it."""

    async def stop(self) -> None:
        """End it, also when it has started only in part."""


StartableT = TypeVar("StartableT", bound=Startable)


def started(thing: StartableT) -> Iterator[StartableT]:
    """Start and give something, and stop it when it is not needed any more: the body of a fixture."""
    try:
        asyncio.run(thing.start())
        yield thing
    finally:
        asyncio.run(thing.stop())


class Lifetime:
    """`async with` for what starts and stops."""

    async def start(self) -> None:
        """Start it."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End it, also when it has started only in part."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
