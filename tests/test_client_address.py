"""Who the client is: the peer, or what trusted proxies say, and nobody else."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from sse_broker.client_address import client_address, client_host, join_host_port

PROXY = ("10.0.0.1", 5555)
TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
FORWARDED = "X-Forwarded-For"


def address(headers: dict[str, str] | None = None, peer: object = PROXY) -> str:
    return client_address(peer, CIMultiDict(headers or {}), TRUSTED)


def test_without_proxies_the_client_is_the_peer() -> None:
    assert client_address(("203.0.113.9", 40001), CIMultiDict(), ()) == "203.0.113.9:40001"


def test_an_ipv6_peer_stands_in_brackets() -> None:
    assert client_address(("2001:db8::1", 40001, 0, 0), CIMultiDict(), ()) == "[2001:db8::1]:40001"


def test_an_ipv4_peer_of_a_dual_stack_socket_reads_as_ipv4() -> None:
    assert client_address(("::ffff:203.0.113.9", 40001, 0, 0), CIMultiDict(), ()) == "203.0.113.9:40001"


@pytest.mark.parametrize("peer", [None, "", "/run/broker.sock", ()])
def test_a_peer_without_an_address_is_empty_text(peer: object) -> None:
    assert address({FORWARDED: "203.0.113.9"}, peer) == ""


@pytest.mark.parametrize("header", [FORWARDED, "X-Real-IP", "x-forwarded-for"])
def test_the_word_of_a_peer_that_is_no_trusted_proxy_counts_for_nothing(header: str) -> None:
    assert address({header: "198.51.100.1"}, ("203.0.113.9", 40001)) == "203.0.113.9:40001"


@pytest.mark.parametrize("header", [FORWARDED, "X-Real-IP", "x-forwarded-for", "X-REAL-IP"])
def test_a_trusted_proxy_names_the_client(header: str) -> None:
    assert address({header: "198.51.100.1"}) == "198.51.100.1"


def test_a_trusted_proxy_that_says_nothing_is_the_client_itself() -> None:
    assert address() == "10.0.0.1:5555"


def test_the_client_is_the_last_that_is_no_trusted_proxy() -> None:
    assert address({FORWARDED: "198.51.100.1, 10.0.0.7,fd00::3"}) == "198.51.100.1"


def test_what_the_client_itself_sent_is_not_believed() -> None:
    """A proxy appends; the words before its own are the client's."""
    assert address({FORWARDED: "1.1.1.1, 198.51.100.1"}) == "198.51.100.1"
    assert address({FORWARDED: "1.1.1.1, 198.51.100.1, 10.0.0.7"}) == "198.51.100.1"


def test_a_line_that_a_proxy_added_counts_after_those_of_the_client() -> None:
    """Some proxies, HAProxy for one, add a header line of their own instead of extending the client's."""
    headers = CIMultiDict([(FORWARDED, "1.1.1.1"), (FORWARDED, "198.51.100.1")])
    assert client_address(PROXY, headers, TRUSTED) == "198.51.100.1"


def test_of_several_real_ip_lines_the_last_is_the_proxy_s() -> None:
    headers = CIMultiDict([("X-Real-IP", "1.1.1.1"), ("X-Real-IP", "198.51.100.1")])
    assert client_address(PROXY, headers, TRUSTED) == "198.51.100.1"


def test_the_forwarded_list_wins_over_the_real_ip() -> None:
    assert address({FORWARDED: "198.51.100.1", "X-Real-IP": "198.51.100.2"}) == "198.51.100.1"


@pytest.mark.parametrize(
    "junk", ["unknown", "", "a b", "300.1.1.1", "<script>", "1.2.3.4.5", "[::1", "::::", "_hidden", "fe80::1%<b>"]
)
def test_what_stands_before_something_malformed_is_not_believed(junk: str) -> None:
    assert address({FORWARDED: f"198.51.100.1, {junk}"}) == "10.0.0.1:5555"
    assert address({FORWARDED: f"198.51.100.1, {junk}, 10.0.0.9"}) == "10.0.0.9"


def test_a_malformed_list_leaves_the_real_ip() -> None:
    assert address({FORWARDED: "unknown", "X-Real-IP": "198.51.100.2"}) == "198.51.100.2"


def test_a_malformed_real_ip_leaves_the_peer() -> None:
    assert address({"X-Real-IP": "evil\t\x00"}) == "10.0.0.1:5555"


@pytest.mark.parametrize(
    ("hop", "client"),
    [
        ("198.51.100.1:4711", "198.51.100.1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        (" 198.51.100.1 ", "198.51.100.1"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("::ffff:c633:6401", "198.51.100.1"),
    ],
)
def test_an_address_reads_the_same_however_a_proxy_writes_it(hop: str, client: str) -> None:
    assert address({FORWARDED: hop}) == client
    assert address({"X-Real-IP": hop}) == client


def test_a_trusted_proxy_is_known_in_its_ipv6_spelling_too() -> None:
    assert address({FORWARDED: "198.51.100.1, ::ffff:10.0.0.7"}, ("::ffff:10.0.0.1", 5555, 0, 0)) == "198.51.100.1"


def test_only_trusted_proxies_in_the_list_leave_the_first_of_them() -> None:
    assert address({FORWARDED: "10.0.0.9, 10.0.0.8"}) == "10.0.0.9"


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_header_can_make_it_fail_or_break_a_line(forwarded: str, real: str) -> None:
    found = address({FORWARDED: forwarded, "X-Real-IP": real})
    assert found
    assert found.isprintable()


def test_host_and_port_are_joined_with_brackets_around_ipv6_only() -> None:
    assert join_host_port("127.0.0.1", 80) == "127.0.0.1:80"
    assert join_host_port("::1", 80) == "[::1]:80"
    assert join_host_port("broker.example", 80) == "broker.example:80"


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("2001:db8::1", 5, 0, 0), "2001:db8::1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (None, ""),
    ],
)
def test_who_is_limited_is_called_by_one_name_whatever_the_listening_socket(peer: object, host: str) -> None:
    """Else all IPv4 clients of an IPv6 socket would be one: they share the first half of their address."""
    assert client_host(peer, CIMultiDict(), ()) == host
