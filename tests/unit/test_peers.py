"""The book of peers: whom a registration makes a peer, and that ids and addresses stay unique."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd import errors
from peerd.errors import Code, PeerdError
from peerd.peers import Peer, PeerBook
from unit.support import brief, registration

LAPTOP = Peer("laptop", "10.0.0.4", "02:00:00:00:00:04", "laptop-host", "0.0.9", "key-4", 100.0, 200.0, True)
DESKTOP = Peer("desktop", "10.0.0.2", public_key="key-2")
IDS = st.sampled_from(["vps", "desktop", "laptop", "phone"])
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"])
KEYS = st.sampled_from(["", "key-1", "key-2"])


def book() -> PeerBook:
    return PeerBook([LAPTOP, DESKTOP])


def test_a_peer_comes_back_as_it_was() -> None:
    assert Peer.from_wire(LAPTOP.to_wire()) == LAPTOP


def test_a_peer_needs_no_more_than_an_id_and_an_address() -> None:
    assert Peer.from_wire({"peer_id": "a", "ip_address": "10.0.0.9"}) == Peer("a", "10.0.0.9")


@pytest.mark.parametrize("entry", [None, [], "laptop", 1, True])
def test_a_peer_that_is_no_object_is_refused(entry: object) -> None:
    with pytest.raises(PeerdError, match="a peer must be an object"):
        Peer.from_wire(entry)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peer_id", None),
        ("peer_id", "a b"),
        ("ip_address", None),
        ("ip_address", "vps"),
        ("ip_address", "0.0.0.0"),
        ("mac_address", "x"),
        ("hostname", 1),
        ("hostname", "a" * 256),
        ("hostname", "\udcff"),
        ("daemon_version", []),
        ("public_key", "\0"),
        ("public_key", "k" * 256),
        ("first_seen", -1),
        ("first_seen", True),
        ("last_seen", "now"),
        ("last_seen", 2**40),
        ("last_seen", float("inf")),
        ("last_seen", float("nan")),
        ("last_seen", 10**400),
        ("is_online", 1),
        ("is_online", "yes"),
    ],
    ids=brief,
)
def test_a_peer_out_of_bounds_is_refused_by_the_name_of_its_field(name: str, value: object) -> None:
    with pytest.raises(PeerdError) as caught:
        Peer.from_wire({**LAPTOP.to_wire(), name: value})
    assert caught.value.code is Code.BAD_MESSAGE
    assert name in caught.value.sentence


def test_a_peer_is_found_by_id_and_by_address() -> None:
    assert book().by_id("laptop") == book().by_address("10.0.0.4") == LAPTOP
    assert book().by_id("10.0.0.4") is None
    assert book().by_address("laptop") is None


def test_peers_are_listed_in_the_order_of_their_addresses() -> None:
    addresses = ["10.0.0.100", "10.0.0.9", "9.255.0.1", "10.0.0.10"]
    listed = PeerBook(Peer(f"p{number}", address) for number, address in enumerate(addresses)).all()
    assert [peer.ip_address for peer in listed] == ["9.255.0.1", "10.0.0.9", "10.0.0.10", "10.0.0.100"]


def test_a_removed_peer_is_gone_by_id_and_by_address() -> None:
    peers = book()
    assert peers.remove("laptop") == LAPTOP
    assert peers.remove("laptop") is None
    assert peers.by_address("10.0.0.4") is None
    assert peers.all() == [DESKTOP]


def test_putting_a_peer_replaces_who_had_its_id_and_who_had_its_address() -> None:
    peers = book()
    moved = Peer("laptop", "10.0.0.2")
    peers.put(moved)
    assert peers.all() == [moved]
    assert peers.by_address("10.0.0.4") is None
    assert peers.by_id("desktop") is None


def test_a_new_peer_is_admitted_with_the_address_and_the_key_that_the_vpn_vouches_for() -> None:
    admitted = book().admit(registration("phone"), "10.0.0.5", "key-5", 300.0)
    assert admitted == Peer(
        "phone", "10.0.0.5", "02:00:00:00:00:01", "phone-host", "0.1.0", "key-5", 300.0, 300.0, False
    )


def test_admission_leaves_the_book_as_it_was() -> None:
    peers = book()
    peers.admit(registration("phone"), "10.0.0.5", "key-5", 300.0)
    peers.admit(registration("laptop"), "10.0.0.4", "key-4", 300.0)
    assert peers.all() == [DESKTOP, LAPTOP]


def test_a_peer_that_comes_back_is_renewed_and_was_first_seen_when_it_was() -> None:
    claim = registration("laptop", hostname="new-name", daemon_version="0.2.0")
    renewed = book().admit(claim, "10.0.0.4", "key-4", 300.0)
    assert renewed == replace(
        LAPTOP, mac_address=claim.mac_address, hostname="new-name", daemon_version="0.2.0", last_seen=300.0
    )


@pytest.mark.parametrize(
    ("peer_id", "address", "key", "sentence"),
    [
        ("laptop", "10.0.0.5", "key-5", "Peer id is taken: laptop belongs to 10.0.0.4"),
        ("laptop", "10.0.0.5", "key-4", "Peer id is taken: laptop belongs to 10.0.0.4"),
        ("laptop", "10.0.0.2", "key-2", "Peer id is taken: laptop belongs to 10.0.0.4"),
        ("phone", "10.0.0.4", "key-4", "Address is taken: 10.0.0.4 is registered as laptop"),
        ("phone", "10.0.0.4", "", "Address is taken: 10.0.0.4 is registered as laptop"),
        ("laptop", "10.0.0.4", "key-9", "WireGuard key changed: laptop (10.0.0.4) was registered with another key"),
    ],
)
def test_what_belongs_to_another_is_refused(peer_id: str, address: str, key: str, sentence: str) -> None:
    with pytest.raises(PeerdError) as caught:
        book().admit(registration(peer_id), address, key, 300.0)
    assert caught.value.sentence == sentence
    assert caught.value.kind.outcome == "denied"


def test_a_key_that_could_not_be_found_out_does_not_forget_the_one_that_is_known() -> None:
    assert book().admit(registration("laptop"), "10.0.0.4", "", 300.0).public_key == "key-4"


def test_a_key_that_was_not_known_is_kept_once_it_is() -> None:
    peers = PeerBook([replace(LAPTOP, public_key="")])
    assert peers.admit(registration("laptop"), "10.0.0.4", "key-4", 300.0).public_key == "key-4"


def consistent(peers: PeerBook) -> None:
    listed = peers.all()
    assert len(listed) == len(peers)
    assert len({peer.peer_id for peer in listed}) == len({peer.ip_address for peer in listed}) == len(listed)
    for peer in listed:
        assert peers.by_id(peer.peer_id) is peers.by_address(peer.ip_address) is peer
    held = {peer.ip_address for peer in listed}
    assert all((peers.by_address(f"10.0.0.{last}") is not None) == (f"10.0.0.{last}" in held) for last in range(6))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), IDS, ADDRESSES),
        st.tuples(st.just("remove"), IDS, ADDRESSES),
        st.tuples(st.just("admit"), IDS, ADDRESSES),
    ),
    max_size=30,
)


@given(STEPS, st.lists(KEYS, min_size=30, max_size=30))
def test_ids_and_addresses_stay_unique_whatever_comes(steps: list[tuple[str, str, str]], keys: list[str]) -> None:
    peers = PeerBook()
    for (step, peer_id, address), key in zip(steps, keys, strict=False):
        if step == "put":
            peers.put(Peer(peer_id, address))
        elif step == "remove":
            peers.remove(peer_id)
        else:
            before = peers.all()
            try:
                peers.put(peers.admit(registration(peer_id), address, key, 1.0))
            except PeerdError:
                assert peers.all() == before
            else:
                # Nobody but the one who registered has changed.
                assert {peer for peer in before if peer.peer_id != peer_id} <= set(peers.all())
        consistent(peers)


@pytest.mark.parametrize(
    ("wanted", "suggestion"),
    [("lpatop", "Did you mean laptop?"), ("LAPTOP", "Did you mean laptop?"), ("10.0.0.9", ""), ("printer", "")],
)
def test_an_id_that_is_nobodys_is_answered_with_those_that_are_close(wanted: str, suggestion: str) -> None:
    error = PeerBook([Peer("laptop", "10.0.0.4"), Peer("vps", "10.0.0.1")]).missing(wanted)
    assert (error.code, error.sentence) == (Code.PEER_NOT_FOUND, f"Peer not found: {wanted}")
    assert error.hints[0] == (suggestion or error.hints[0])
    assert ("Did you mean" in error.text) == bool(suggestion)


def test_what_is_close_is_looked_for_among_the_likely_ones_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    get_close_matches = difflib.get_close_matches

    def count(word: str, names: Sequence[str], most: int, least: float) -> list[str]:
        looked_at.append(len(names))
        return get_close_matches(word, names, most, least)

    monkeypatch.setattr(difflib, "get_close_matches", count)
    many = [Peer(f"worker-{number:05}-of-the-fleet", f"10.1.{number // 250}.{number % 250}") for number in range(1000)]
    assert PeerBook([*many, Peer("laptop", "10.0.0.4")]).missing("lpatop").hints[0] == "Did you mean laptop?"
    assert looked_at == [errors._MOST_LIKELY]


def test_what_another_machine_suggests_stands() -> None:
    here = book()
    told = PeerdError(Code.PEER_NOT_FOUND, peer="laptop", suggestion="laptop registers from 10.0.0.9.")
    assert here.explain(told, "laptop") is told
    plain = PeerdError(Code.PEER_NOT_FOUND, peer="lapto", suggestion="")
    assert here.explain(plain, "lapto").hints[0] == "Did you mean laptop?"
    other = PeerdError(Code.NOT_CONNECTED, address="10.0.0.1")
    assert here.explain(other, "lapto") is other
