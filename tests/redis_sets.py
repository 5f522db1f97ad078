"""Sets of real Redis servers: a master and a replica watched by Sentinels, and a Cluster. Nothing of the broker."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.cluster import RedisCluster as ClusterClient
from redis.exceptions import RedisError

from tests.lifetimes import Lifetime
from tests.redis_servers import Access, RedisServer, redis_table
from tests.waiting import until

BUS_OFFSET = 10_000
SLOTS = 16_384
MASTER_NAME = "broker"


class ServerSet(Lifetime):
    """What the sets share: servers that start and stop together, and the way in."""

    def __init__(self, access: Access | None) -> None:
        self.access = access or Access()
        self.servers: list[RedisServer] = []

    async def start(self) -> None:
        """Start all and wait until the set is whole."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End all of them for good."""
        for server in self.servers:
            await server.stop()

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority, with TLS."""
        return self.servers[0].ca_file

    async def cut_clients(self) -> int:
        """Cut every client connection of all running servers, replication aside, and return how many there were."""
        return sum([await server.cut_clients() for server in self.servers if server.running])


async def settled(question: Callable[[], Awaitable[Any]], what: str, *, seconds: float = 20) -> Any:
    """Ask until the answer is true; a server that is away or says no counts as not yet."""

    async def ask() -> Any:
        try:
            return await question()
        except (RedisError, OSError):
            return None

    return await until(ask, seconds=seconds, what=what, pause_seconds=0.03)


class SentinelSet(ServerSet):
    """A master, a replica and three Sentinels; a failover takes two to four seconds.

    `guarded`: the Sentinels want the same user and password as the servers.
    """

    def __init__(
        self,
        *,
        access: Access | None = None,
        program: str = "redis-server",
        down_after_ms: int = 1000,
        guarded: bool = False,
    ) -> None:
        super().__init__(access)
        first = RedisServer(access=self.access, program=program)
        second = RedisServer(access=self.access, program=program, certificates=first.folder)
        self.data = [first, second]
        ids = [secrets.token_hex(20) for _ in range(3)]
        self.sentinels = [
            RedisServer(program=program, arguments=["--sentinel"], certificates=first.folder,
                        access=self.access if guarded else Access(tls=self.access.tls)) for _ in ids
        ]  # fmt: skip
        for number, sentinel in enumerate(self.sentinels):
            # They would need some seconds to find each other and the replica; so they are born knowing.
            known = [
                f"sentinel known-sentinel {MASTER_NAME} 127.0.0.1 {other.port} {id_}"
                for other, id_ in zip(self.sentinels, ids, strict=True) if other is not sentinel
            ]  # fmt: skip
            sentinel.add_lines([
                f"sentinel myid {ids[number]}",
                f"sentinel monitor {MASTER_NAME} 127.0.0.1 {first.port} 2",
                f"sentinel down-after-milliseconds {MASTER_NAME} {down_after_ms}",
                f"sentinel failover-timeout {MASTER_NAME} 2000",
                *([f"sentinel auth-pass {MASTER_NAME} {self.access.password}"] if self.access.password else []),
                *([f"sentinel auth-user {MASTER_NAME} {self.access.username}"] if self.access.username else []),
                f"sentinel known-replica {MASTER_NAME} 127.0.0.1 {second.port}",
                *known,
                *(self._guard() if guarded else []),
            ])  # fmt: skip
        self.servers = [*self.data, *self.sentinels]

    def _guard(self) -> list[str]:
        user, password = self.access.username, self.access.password
        if not user:
            return [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
        return [
            f"user {user} on >{password} ~* &* +@all",
            "user default off",
            f"sentinel sentinel-user {user}",
            f"sentinel sentinel-pass {password}",
        ]

    @property
    def addrs(self) -> list[str]:
        """The Sentinels' addresses."""
        return [sentinel.addr for sentinel in self.sentinels]

    @property
    def config(self) -> dict[str, Any]:
        """The broker's `[redis]` table for this set."""
        return redis_table(self.addrs, self.access, sentinel=MASTER_NAME)

    async def start(self) -> None:
        """Start all; return when the replica has its data and each Sentinel sees the others."""
        await self.data[0].start()
        await self.data[1].start()
        await self.data[1].ask("REPLICAOF", "127.0.0.1", self.data[0].port)
        await asyncio.gather(*(sentinel.start() for sentinel in self.sentinels))
        await self.whole()

    async def whole(self, *, seconds: float = 20) -> None:
        """Wait until all five work together: one master, a replica that follows it, three Sentinels that agree."""

        async def agreed() -> bool:
            views = [(await self._ask(sentinel, "MASTER"))[0] for sentinel in self.sentinels]
            if len({view["port"] for view in views}) != 1 or any(view["flags"] != "master" for view in views):
                return False
            if any((view["num-slaves"], view["num-other-sentinels"]) != ("1", "2") for view in views):
                return False
            replicas = [await self._ask(sentinel, "REPLICAS") for sentinel in self.sentinels]
            if any(view["flags"] != "slave" for seen in replicas for view in seen):
                return False
            master = next(server for server in self.data if str(server.port) == views[0]["port"])
            replica = next(server for server in self.data if server is not master)
            async with master.client() as one, replica.client() as two:
                state = await two.info("replication")
                return (await one.info("replication"))["role"] == "master" and state.get("master_port") == master.port \
                    and state["master_link_status"] == "up"  # fmt: skip

        await settled(agreed, "a whole set of Sentinels", seconds=seconds)

    async def _ask(self, sentinel: RedisServer, what: str) -> list[dict[str, str]]:
        answer = await sentinel.ask("SENTINEL", what, MASTER_NAME)
        entries = answer if what == "REPLICAS" else [answer]
        return [
            entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True)) for entry in entries
        ]

    async def master(self) -> RedisServer:
        """Return the server that the Sentinels take for the master and that says so itself."""

        async def find() -> RedisServer | None:
            running = [sentinel for sentinel in self.sentinels if sentinel.running]
            ports = {(await self._ask(sentinel, "MASTER"))[0]["port"] for sentinel in running}
            for server in self.data:
                if ports == {str(server.port)} and server.running and (await server.ask("ROLE"))[0] == "master":
                    return server
            return None

        found: RedisServer = await settled(find, "a master that all Sentinels know")
        return found

    async def failover(self) -> RedisServer:
        """Kill the master, wait until the replica is promoted, and return that; `heal` brings the old one back."""
        old = await self.master()
        await old.kill()
        new = await self.master()
        assert new is not old
        return new

    async def heal(self) -> None:
        """Start or thaw whatever is down and wait until the set is whole again.

        A master that returns is made a replica here, which Sentinels do themselves only after ten seconds.
        """
        for server in self.servers:
            server.thaw()
        if all(server.running for server in self.servers):
            await self.whole()
            return
        master = await self.master()
        for server in self.servers:
            if not server.running:
                await server.start()
                if server in self.data:
                    await server.ask("REPLICAOF", "127.0.0.1", master.port)
        await self.whole()

    def client(self, **options: Any) -> Redis:
        """Return a client of the first server; see `master` for the present master."""
        return self.data[0].client(**options)

    async def flush(self) -> None:
        """Remove all data."""
        await (await self.master()).flush()


class RedisCluster(ServerSet):
    """Three masters and three replicas. A killed master is replaced within about four seconds."""

    def __init__(
        self,
        *,
        access: Access | None = None,
        program: str = "redis-server",
        lines: Sequence[str] = (),
        node_timeout_ms: int = 1500,
    ) -> None:
        super().__init__(access)
        own = ["cluster-enabled yes", f"cluster-node-timeout {node_timeout_ms}", "cluster-config-file nodes.conf"]
        # A replica that was never far behind may stand for election at once, whatever the clock says.
        own += ["cluster-replica-validity-factor 0", "repl-ping-replica-period 1", *lines]
        folder: Path | None = None
        for _ in range(6):
            server = RedisServer(access=self.access, program=program, partner_offset=BUS_OFFSET, lines=own,
                                 certificates=folder)  # fmt: skip
            folder = folder or server.folder
            self.servers.append(server)
        self.ids = [secrets.token_hex(20) for _ in self.servers]

    @property
    def addrs(self) -> list[str]:
        """All six addresses."""
        return [server.addr for server in self.servers]

    @property
    def config(self) -> dict[str, Any]:
        """The broker's `[redis]` table for this cluster."""
        return redis_table(self.addrs, self.access)

    async def start(self) -> None:
        """Start all six, each born with the whole topology, which saves the seconds of meeting."""
        for number, server in enumerate(self.servers):
            (server.folder / "nodes.conf").write_text(self._topology(number))
        for server in self.servers:
            await server.start()
        await self.whole()

    def _topology(self, myself: int) -> str:
        share = SLOTS // 3 + 1
        lines = []
        for number, (server, id_) in enumerate(zip(self.servers, self.ids, strict=True)):
            flags = "myself," if number == myself else ""
            place = f"{id_} 127.0.0.1:{server.port}@{server.port + BUS_OFFSET} {flags}"
            if number < 3:
                slots = f"{number * share}-{min((number + 1) * share, SLOTS) - 1}"
                lines.append(f"{place}master - 0 0 {number + 1} connected {slots}")
            else:
                lines.append(f"{place}slave {self.ids[number - 3]} 0 0 {number - 2} connected")
        return "\n".join([*lines, "vars currentEpoch 3 lastVoteEpoch 0", ""])

    async def whole(self, *, seconds: float = 20) -> None:
        """Wait until all nodes say that the cluster is well, and each of three masters has a replica in step."""

        async def agreed() -> bool:
            masters = 0
            for server in self.servers:
                async with server.client() as redis:
                    facts = str(await server.ask("CLUSTER", "INFO"))
                    state = await redis.info("replication")
                if "cluster_state:ok" not in facts or "cluster_slots_ok:16384" not in facts:
                    return False
                if state["role"] == "master":
                    masters += 1
                    if state["connected_slaves"] < 1:
                        return False
                elif state["master_link_status"] != "up":
                    return False
            return masters == 3

        await settled(agreed, "a whole cluster", seconds=seconds)

    def client(self, **options: Any) -> ClusterClient:
        """Return a new cluster client that decodes text; use it with `async with`."""
        nodes = [ClusterNode("127.0.0.1", server.port) for server in self.servers if server.running]
        settings: dict[str, Any] = {"decode_responses": True, **self.access.client_options(self.ca_file), **options}
        return ClusterClient(startup_nodes=nodes, **settings)

    async def owner(self, slot: int, *, other_than: RedisServer | None = None, seconds: float = 20) -> RedisServer:
        """Return the running master of a slot, on which all running nodes agree."""

        async def find() -> RedisServer | None:
            views = set()
            for server in self.servers:
                if server.running:
                    ranges = await server.ask("CLUSTER", "SLOTS")
                    views.add(next((entry[2][1] for entry in ranges if entry[0] <= slot <= entry[1]), None))
            found = [server for server in self.servers if views == {server.port} and server.running]
            return found[0] if found and found[0] is not other_than else None

        what = f"a master of slot {slot} on which all nodes agree"
        server: RedisServer = await settled(find, what, seconds=seconds)
        return server

    async def slot_of(self, key: str) -> int:
        """Return the slot of a key."""
        running = next(server for server in self.servers if server.running)
        return int(await running.ask("CLUSTER", "KEYSLOT", key))

    async def failover(self, slot: int = 0) -> RedisServer:
        """Kill the master of a slot, wait until its replica is promoted and all is well, and return that."""
        old = await self.owner(slot)
        await old.kill()
        new = await self.owner(slot, other_than=old)

        async def well() -> bool:
            states = [str(await server.ask("CLUSTER", "INFO")) for server in self.servers if server.running]
            return all("cluster_state:ok" in state for state in states)

        await settled(well, "a cluster that is well again")
        return new

    async def replica(self, master: RedisServer) -> RedisServer:
        """Return the running replica of a master."""

        async def find() -> RedisServer | None:
            for server in self.servers:
                if server.running and server is not master:
                    role = await server.ask("ROLE")
                    if role[0] == "slave" and role[2] == master.port and role[3] == "connected":
                        return server
            return None

        found: RedisServer = await settled(find, f"a replica of {master.addr}")
        return found

    async def hand_over(self, slot: int) -> RedisServer:
        """Have the replica of a slot's master take its place in good order (CLUSTER FAILOVER); return the replica."""
        master = await self.owner(slot)
        for _ in range(3):
            replica = await self.replica(master)
            await replica.ask("CLUSTER", "FAILOVER")
            # It gives up after five seconds, where a busy machine does not let the masters vote in time.
            with contextlib.suppress(AssertionError):
                return await self.owner(slot, other_than=master, seconds=7)
        raise AssertionError(f"{master.addr} can not be replaced")

    async def migrate_slot(
        self,
        slot: int,
        *,
        to: RedisServer | None = None,
        batch: int = 10,
        halfway: Callable[[], Awaitable[None]] | None = None,
    ) -> RedisServer:
        """Move a slot with its keys to another master while clients go on (live resharding); return the new owner.

        `halfway` is awaited when the first keys have moved and others not.
        """
        source = await self.owner(slot)
        others = [await self.owner(at) for at in (0, SLOTS // 2, SLOTS - 1)]
        target = to or next(server for server in others if server is not source)
        source_id, target_id = [await server.ask("CLUSTER", "MYID") for server in (source, target)]
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        user, password = self.access.username, self.access.password
        way_in = ["AUTH2", user, password] if user else ["AUTH", password] if password else []
        while keys := await source.ask("CLUSTER", "GETKEYSINSLOT", slot, batch):
            await source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, *way_in, "KEYS", *keys)
            if halfway is not None:
                assert await source.ask("CLUSTER", "COUNTKEYSINSLOT", slot), "all keys moved at once"
                await halfway()
                halfway = None
        for server in (target, source):
            await server.ask("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        assert await self.owner(slot) is target
        return target

    async def heal(self) -> None:
        """Start or thaw whatever is down and wait until the cluster is whole again."""
        for server in self.servers:
            server.thaw()
            if not server.running:
                await server.start()
        await self.whole()

    async def flush(self) -> None:
        """Remove all data."""
        for server in self.servers:
            if (await server.ask("ROLE"))[0] == "master":
                await server.flush()
