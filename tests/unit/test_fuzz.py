"""Bytes that no honest peer sends. tests/fuzz/run has the million, and a fuzzer that is guided by coverage."""

from __future__ import annotations

import pytest
from fuzz import frames
from hypothesis import given, settings
from hypothesis import strategies as st

_MUTATIONS = 10_000
_ROUNDS = 10


@pytest.mark.parametrize("seed", range(len(frames.SEEDS)))
def test_what_an_honest_peer_sends_is_frames(seed: int) -> None:
    assert frames.check(frames.SEEDS[seed]) == frames.SEEDS[seed].count(b'{"type"')


@pytest.mark.parametrize("start", range(0, _MUTATIONS, _MUTATIONS // _ROUNDS))
def test_mutated_conversations_are_read_or_refused(start: int) -> None:
    found = [frames.check(frames.mutated(seed)) for seed in range(start, start + _MUTATIONS // _ROUNDS)]
    # Neither were all of them refused at their first byte, nor were they all whole.
    assert 0 < found.count(0) < len(found)


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(frames.SEEDS)).map(b"".join)))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    frames.check(data)


FIELDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(sorted({name for seed in frames.SEEDS for name in frames.names(seed)})) | st.text(max_size=12)


@settings(max_examples=500)
@given(st.dictionaries(NAMES, FIELDS, max_size=8))
def test_any_fields_are_a_message_or_refused(fields: dict[str, object]) -> None:
    fields.pop("type", None)
    fields.pop("size", None)
    assert frames.check(frames.encoded(fields)) == 1
