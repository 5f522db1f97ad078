"""The replay logs of the embedded backend: for everyone, for each user and for each device, the newest frames, for a while.
Pure: the clock is passed in.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby

from sse_broker.frame import Frame

MICROSECONDS = 1_000_000


@dataclass(slots=True)
class Log:
    """The newest frames of one target, ids rising; `floor_id` is the greatest id that was dropped from it."""

    frames: deque[Frame] = field(default_factory=deque)
    floor_id: int = 0


class Logs:
    """Logs by key, each of at most `max_frames` frames no older than `expire_seconds`.

    Ids are microseconds of the clock, so an id says how old its frame is.
    """

    def __init__(self, max_frames: int, expire_seconds: float) -> None:
        self._max_frames = max_frames
        self._expire_us = int(expire_seconds * MICROSECONDS)
        # In the order of the last append, so that what has expired stands in front.
        self._logs: OrderedDict[Hashable, Log] = OrderedDict()

    def __len__(self) -> int:
        return len(self._logs)

    def append(self, key: Hashable, frame: Frame) -> None:
        """Keep a frame."""
        log = self._logs.get(key)
        if log is None:
            log = self._logs[key] = Log()
        self._logs.move_to_end(key)
        log.frames.append(frame)
        if len(log.frames) > self._max_frames:
            log.floor_id = log.frames.popleft().id

    def rename(self, key: Hashable, new_key: Hashable) -> None:
        """Have a log under another key, if there is one and the other key is free."""
        if key in self._logs and new_key not in self._logs:
            self._logs[new_key] = self._logs.pop(key)

    def expire(self, now_id: int) -> None:
        """Forget the logs whose newest frame is too old at `now_id`."""
        while self._logs:
            key, log = next(iter(self._logs.items()))
            if log.frames and log.frames[-1].id >= now_id - self._expire_us:
                return
            del self._logs[key]

    def gap_id(self, keys: Iterable[Hashable], after_id: int, now_id: int) -> int:
        """Return up to which id frames after `after_id` may have been dropped from these logs; 0 when none were."""
        dropped = [log.floor_id for key in keys if (log := self._logs.get(key))]
        dropped.append(now_id - self._expire_us)
        return max([gap_id for gap_id in dropped if gap_id > after_id], default=0)

    def read(self, keys: Iterable[Hashable], after_id: int, limit: int) -> list[Frame]:
        """Return at most `limit` frames of these logs with ids greater than `after_id`, ids rising, each once."""
        found = [[frame for frame in log.frames if frame.id > after_id] for key in keys if (log := self._logs.get(key))]
        rising = merge(*found, key=lambda frame: frame.id)
        return [next(same) for _, same in groupby(rising, key=lambda frame: frame.id)][:limit]
