"""Who something is for. Pure values, checked at construction."""

from dataclasses import dataclass

from sse_broker.frame import check_data, check_event


@dataclass(frozen=True, slots=True)
class Target:
    """Some users (uids) and some devices (device ids), each named once; neither means everyone."""

    users: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.users) > 1:
            object.__setattr__(self, "users", tuple(dict.fromkeys(self.users)))
        if len(self.devices) > 1:
            object.__setattr__(self, "devices", tuple(dict.fromkeys(self.devices)))

    @property
    def everyone(self) -> bool:
        """Whether this is a broadcast."""
        return not self.users and not self.devices


@dataclass(frozen=True, slots=True)
class Reach:
    """Whom somebody may send to: these users (uids) and devices (device ids); with `everyone` also all of them at once."""

    users: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    everyone: bool = False

    def covers(self, target: Target) -> bool:
        """Tell whether each one of a target may be reached."""
        if self.everyone:
            return True
        return not target.everyone and self.users.issuperset(target.users) and self.devices.issuperset(target.devices)


@dataclass(frozen=True, slots=True)
class Message:
    """What a back end sends: a frame that has no id yet, and who it is for.

    Raises: BadRequest when the event name or the data can not stand in an event stream.
    """

    target: Target
    event: str
    data: str

    def __post_init__(self) -> None:
        check_event(self.event)
        check_data(self.data)


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a message: its frame id, and how many distinct online devices it is addressed to."""

    id: int
    count: int
