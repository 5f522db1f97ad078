"""Listening sockets: bound before anything else, with one clear sentence when they can not be."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator

import pytest

from sse_broker.errors import StartError
from sse_broker.listener import adopt, listen, public_address


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """What a test opens; closed at the end."""
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()


def test_a_port_of_0_takes_a_free_one_and_connections_are_accepted(sockets: list[socket.socket]) -> None:
    sockets += listen("127.0.0.1", 0, peer_timeout_seconds=5)
    (listener,) = sockets
    port = listener.getsockname()[1]
    assert port
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        listener.setblocking(True)
        accepted, peer = listener.accept()
        with accepted:
            assert peer == client.getsockname()


def test_a_host_of_several_addresses_has_one_port_on_all(sockets: list[socket.socket]) -> None:
    sockets += listen("", 0, peer_timeout_seconds=5)
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    assert len({sock.family for sock in sockets}) == len(sockets)


def test_sockets_never_block_the_loop(sockets: list[socket.socket]) -> None:
    sockets += listen("127.0.0.1", 0, peer_timeout_seconds=5)
    assert not sockets[0].getblocking()


def test_a_taken_port_is_one_sentence_with_the_address(sockets: list[socket.socket]) -> None:
    sockets += listen("127.0.0.1", 0, peer_timeout_seconds=5)
    port = sockets[0].getsockname()[1]
    with pytest.raises(StartError, match=rf"^can not listen on 127\.0\.0\.1:{port}: address already in use$"):
        listen("127.0.0.1", port, peer_timeout_seconds=5)


@pytest.mark.parametrize("host", ["192.0.2.77", "no-such-host.invalid"])
def test_a_host_that_is_not_this_machine_is_one_sentence(host: str) -> None:
    with pytest.raises(StartError, match=rf"^can not listen on {re.escape(host)}:8080: [a-z ,-]+$"):
        listen(host, 8080, peer_timeout_seconds=5)


def test_a_failure_leaves_no_socket_open(sockets: list[socket.socket]) -> None:
    """The port of the sockets that were bound before the one that failed is free again; warnings are errors here."""
    sockets += listen("127.0.0.1", 0, peer_timeout_seconds=5)
    port = sockets[0].getsockname()[1]
    with pytest.raises(StartError):
        listen("127.0.0.1", port, peer_timeout_seconds=5)
    sockets.pop().close()
    sockets += listen("127.0.0.1", port, peer_timeout_seconds=5)


def test_a_port_is_not_shared_unless_asked(sockets: list[socket.socket]) -> None:
    sockets += listen("127.0.0.1", 0, peer_timeout_seconds=5, share_port=True)
    port = sockets[0].getsockname()[1]
    sockets += listen("127.0.0.1", port, peer_timeout_seconds=5, share_port=True)
    with pytest.raises(StartError):
        listen("127.0.0.1", port, peer_timeout_seconds=5)


@pytest.mark.skipif(sys.platform != "linux", reason="options of Linux")
def test_connections_inherit_what_notices_a_peer_that_vanished(sockets: list[socket.socket]) -> None:
    sockets += listen("127.0.0.1", 0, peer_timeout_seconds=4.5)
    (listener,) = sockets
    with socket.create_connection(listener.getsockname(), timeout=5):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 4500


@pytest.mark.skipif(sys.platform != "linux", reason="options of Linux")
def test_a_socket_that_was_handed_over_notices_a_peer_that_vanished_as_our_own_do(sockets: list[socket.socket]) -> None:
    sockets.append(socket.create_server(("127.0.0.1", 0)))
    adopt(sockets, peer_timeout_seconds=4.5)
    (listener,) = sockets
    with socket.create_connection(listener.getsockname(), timeout=5):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 4500


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no such sockets here")
@pytest.mark.parametrize(("family", "kind"), [("AF_UNIX", socket.SOCK_STREAM), ("AF_INET", socket.SOCK_DGRAM)])
def test_a_socket_of_another_kind_than_tcp_is_not_taken(
    sockets: list[socket.socket], family: str, kind: socket.SocketKind
) -> None:
    sockets.append(socket.socket(getattr(socket, family), kind))
    with pytest.raises(StartError) as caught:
        adopt(sockets, peer_timeout_seconds=4.5)
    assert caught.value.message == "a socket that was handed over is none of TCP: a port is needed in ListenStream="


def test_the_address_of_an_instance_is_where_it_listens(sockets: list[socket.socket]) -> None:
    sockets += listen("127.0.0.1", 0, peer_timeout_seconds=5)
    assert public_address(sockets) == f"127.0.0.1:{sockets[0].getsockname()[1]}"


def test_an_instance_on_every_address_is_known_by_one_that_others_can_reach(sockets: list[socket.socket]) -> None:
    sockets += listen("0.0.0.0", 0, peer_timeout_seconds=5)
    host, _, port = public_address(sockets).rpartition(":")
    assert host != "0.0.0.0"
    assert int(port) == sockets[0].getsockname()[1]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_an_ipv6_address_stands_in_brackets(sockets: list[socket.socket]) -> None:
    try:
        sockets += listen("::1", 0, peer_timeout_seconds=5)
    except StartError:
        pytest.skip("no IPv6 loopback here")
    assert public_address(sockets) == f"[::1]:{sockets[0].getsockname()[1]}"
