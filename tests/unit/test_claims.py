"""Registrations that made no peer: who waits, who is refused, and that a claim never keeps a peer out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerd.claims import MAX_SHOWN, Claims
from peerd.config import Mode
from peerd.errors import Code, PeerdError
from peerd.messages import Registration
from peerd.peers import Peer, PeerBook, State
from peerd.protocol import MAX_HEADER, encode
from unit.support import registration

LAPTOP = Peer("laptop", "10.0.0.4", public_key="key-4", first_seen=1.0)
NAS = Peer("nas", "10.0.0.9", public_key="key-9", first_seen=1.0)


def verdict(claims: Claims, claim: Registration, address: str, key: str = "", mode: Mode = Mode.OPEN) -> Code | None:
    """Why a registration makes no peer; None where it does."""
    try:
        claims.admit(PeerBook([LAPTOP]), claim, address, key, 2.0, mode)
    except PeerdError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("mode", "code"),
    [(Mode.OPEN, None), (Mode.APPROVAL, Code.PENDING), (Mode.CLOSED, Code.REGISTRATION_CLOSED)],
)
def test_a_new_machine_is_let_in_or_waits_or_is_refused(mode: Mode, code: Code | None) -> None:
    assert verdict(Claims(), registration("nas"), "10.0.0.9", mode=mode) is code


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("state", list(State))
def test_a_peer_comes_back_whatever_was_claimed_from_its_address(mode: Mode, state: State) -> None:
    claims = Claims([replace(LAPTOP, peer_id="other", state=state)])
    assert verdict(claims, registration("laptop"), "10.0.0.4", "key-4", mode) is None


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize(
    ("peer_id", "address", "key", "code"),
    [
        ("laptop", "10.0.0.9", "key-9", Code.ID_TAKEN),
        ("other", "10.0.0.4", "key-4", Code.ADDRESS_TAKEN),
        ("laptop", "10.0.0.4", "key-9", Code.KEY_CHANGED),
    ],
)
def test_what_belongs_to_a_peer_is_refused_and_kept_to_be_seen(
    mode: Mode, peer_id: str, address: str, key: str, code: Code
) -> None:
    claims = Claims()
    assert verdict(claims, registration(peer_id), address, key, mode) is code
    entry = claims.refused(registration(peer_id), address, key, 2.0, code)
    assert entry is not None
    assert (entry.peer_id, entry.ip_address, entry.public_key) == (peer_id, address, key)
    assert entry.state == code.value
    claims.put(entry)
    assert claims.shown() == claims.named(peer_id) == [entry]


@pytest.mark.parametrize("joining", [False, True])
@pytest.mark.parametrize("mode", list(Mode))
def test_what_was_rejected_is_refused_whatever_its_address_claims(mode: Mode, joining: bool) -> None:
    claims = Claims([replace(NAS, state=State.REJECTED)])
    for peer_id in ("nas", "other"):
        claim = registration(peer_id, joining=joining)
        assert verdict(claims, claim, "10.0.0.9", mode=mode) is Code.REJECTED
        assert claims.refused(claim, "10.0.0.9", "", 2.0, Code.REJECTED) is None
    assert verdict(claims, registration("laptop"), "10.0.0.9") is Code.ID_TAKEN
    assert claims.refused(registration("laptop"), "10.0.0.9", "", 2.0, Code.ID_TAKEN) is None
    # The id is not what was rejected.
    assert verdict(claims, registration("nas"), "10.0.0.10") is None


def test_who_was_deleted_comes_back_when_it_is_told_to_and_not_by_itself() -> None:
    claims = Claims([replace(NAS, state=State.DELETED)])
    assert claims.shown() == []
    assert verdict(claims, registration("nas"), "10.0.0.9") is Code.DELETED
    assert verdict(claims, registration("nas", joining=True), "10.0.0.9") is None
    assert verdict(claims, registration("nas", joining=True), "10.0.0.9", mode=Mode.APPROVAL) is Code.PENDING
    assert verdict(claims, registration("other"), "10.0.0.9") is None
    assert verdict(claims, registration("nas"), "10.0.0.10") is None


def test_who_waits_is_one_entry_that_was_first_seen_when_it_was() -> None:
    claims = Claims()
    for now in (5.0, 6.0):
        entry = claims.refused(registration("nas"), "10.0.0.9", "key-9", now, Code.PENDING)
        assert entry is not None
        claims.put(entry)
    (waiting,) = claims.shown()
    assert (waiting.state, waiting.first_seen, waiting.last_seen) == (State.PENDING, 5.0, 6.0)


def test_nothing_is_kept_of_a_registration_that_is_closed_or_of_a_deleted_worker() -> None:
    for code in (Code.REGISTRATION_CLOSED, Code.DELETED):
        assert Claims().refused(registration("nas"), "10.0.0.9", "", 2.0, code) is None


def test_strangers_cannot_fill_the_memory_or_a_frame() -> None:
    claims = Claims()
    worst = registration("n" * 63, hostname="\x01" * 255, daemon_version="\x01" * 255)
    for number in range(MAX_SHOWN + 50):
        address = f"10.0.{number // 250}.{number % 250 + 1}"
        entry = claims.refused(worst, address, "k" * 44, 2.0, Code.PENDING)
        if entry:
            claims.put(entry)
    assert len(claims.shown()) == MAX_SHOWN
    assert len(encode("reply", {"count": 1, "claims": [claim.to_wire() for claim in claims.shown()]})) < MAX_HEADER


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["laptop", "nas", "other"]),
            st.sampled_from(["10.0.0.4", "10.0.0.9", "10.0.0.10"]),
            st.sampled_from(["", "key-4", "key-9"]),
            st.booleans(),
        ),
        max_size=20,
    ),
    st.sampled_from(list(Mode)),
)
def test_no_sequence_of_claims_keeps_a_peer_out_or_makes_a_stranger_of_it(
    steps: list[tuple[str, str, str, bool]], mode: Mode
) -> None:
    claims, book = Claims(), PeerBook([LAPTOP])
    for peer_id, address, key, joining in steps:
        claim = registration(peer_id, joining=joining)
        try:
            book.put(claims.admit(book, claim, address, key, 2.0, mode))
        except PeerdError as error:
            entry = claims.refused(claim, address, key, 2.0, error.code)
            if entry:
                claims.put(entry)
        assert book.by_address("10.0.0.4") == book.by_id("laptop")
        assert (book.by_id("laptop") or NAS).public_key == "key-4"
        assert len({entry.ip_address for entry in claims.shown()}) == len(claims.shown())
    assert claims.admit(book, registration("laptop"), "10.0.0.4", "key-4", 3.0, mode).peer_id == "laptop"
