"""This instance's open streams by device and by connection. It knows nothing of the cluster: which devices a frame is for
is decided where it is published.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from sse_broker.limits import address_key
from sse_broker.stream import Stream


class Registry:
    """The streams of one instance; a device has one, and during an extrusion its old one too until that has ended."""

    def __init__(self) -> None:
        self._by_connection: dict[str, Stream] = {}
        self._by_device: dict[str, list[Stream]] = {}
        self._of_user: Counter[str] = Counter()
        self._of_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._by_connection)

    def __iter__(self) -> Iterator[Stream]:
        return iter(tuple(self._by_connection.values()))

    def add(self, stream: Stream) -> None:
        """Take a stream in, so that frames for its device reach it from now on."""
        device = stream.device
        self._by_connection[device.connection_id] = stream
        self._by_device[device.device_id] = [*self._by_device.get(device.device_id, ()), stream]
        self._of_user[device.uid] += 1
        self._of_address[address_key(device.device_address)] += 1

    def remove(self, stream: Stream) -> bool:
        """Take a stream out; return whether it was in."""
        device = stream.device
        if self._by_connection.pop(device.connection_id, None) is None:
            return False
        left = [other for other in self._by_device[device.device_id] if other is not stream]
        if left:
            self._by_device[device.device_id] = left
        else:
            del self._by_device[device.device_id]
        _count_down(self._of_user, device.uid)
        _count_down(self._of_address, address_key(device.device_address))
        return True

    def count_of_user(self, uid: str) -> int:
        """Return how many streams a user has here."""
        return self._of_user[uid]

    def count_of_address(self, address: str) -> int:
        """Return how many streams come from an address, with all that are limited together with it."""
        return self._of_address[address_key(address)]

    def connection(self, connection_id: str) -> Stream | None:
        """Return the stream of this connection id."""
        return self._by_connection.get(connection_id)

    def device(self, device_id: str) -> Stream | None:
        """Return the newest stream of a device."""
        streams = self._by_device.get(device_id)
        return streams[-1] if streams else None

    def of_devices(self, device_ids: Iterable[str]) -> Iterator[Stream]:
        """Choose the streams of these devices."""
        for device_id in device_ids:
            yield from self._by_device.get(device_id, ())


def _count_down(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
