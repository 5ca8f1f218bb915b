"""The frame format: every frame comes out as it went in, and nothing else comes out at all."""

from __future__ import annotations

import json
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peerd.errors import Code, PeerdError
from peerd.protocol import MAX_HEADER, MAX_PAYLOAD, MAX_TYPE, Decoder, Frame, encode
from peerd.validate import MAX_ARGUMENTS, MAX_VARIABLES
from unit.support import frames

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
NAMES = TEXT.filter(lambda name: name not in ("type", "size"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.dictionaries(NAMES, VALUES, max_size=5)
TYPES = st.text(min_size=1, max_size=MAX_TYPE)
FRAMES = st.builds(Frame, TYPES, FIELDS, st.binary(max_size=300))


def wire(frame: Frame) -> bytes:
    return encode(frame.type, frame.fields, bytes(frame.payload))


def refusal(data: bytes) -> str:
    """Why these bytes are refused."""
    with pytest.raises(PeerdError) as caught:
        frames(data)
    assert caught.value.code is Code.BAD_MESSAGE
    return str(caught.value.details["reason"])


@given(FRAMES)
def test_a_frame_comes_out_as_it_went_in(frame: Frame) -> None:
    assert frames(wire(frame)) == [frame]


@given(st.lists(FRAMES, min_size=1, max_size=4), st.data())
def test_frames_come_out_in_order_however_their_bytes_are_cut(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(map(wire, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        piece = stream[start:end]
        # What is known to belong into a payload may be received there.
        if (space := decoder.space) is not None and data.draw(st.booleans()):
            count = min(len(space), len(piece))
            space[:count] = piece[:count]
            decoder.arrived(count)
            piece = piece[count:]
        decoder.feed(piece)
        while frame := decoder.next():
            received.append(frame)
    assert received == sent
    assert not decoder.partial


def test_a_frame_comes_out_of_single_bytes_and_not_before_the_last_of_them() -> None:
    data = encode("output", {"stream": "stdout"}, b"\n\0{}\xff")
    decoder = Decoder()
    for byte in data[:-1]:
        decoder.feed(bytes([byte]))
        assert decoder.next() is None
        assert decoder.partial
    decoder.feed(data[-1:])
    assert decoder.next() == Frame("output", {"stream": "stdout"}, b"\n\0{}\xff")
    assert not decoder.partial


def test_memory_for_a_payload_is_taken_once_a_part_of_it_is_there() -> None:
    data = encode("output", {"stream": "stdout"}, bytes(MAX_PAYLOAD))
    decoder = Decoder()
    decoder.feed(data[: MAX_PAYLOAD // 64])
    assert decoder.next() is None
    at_first = decoder.space
    assert at_first is None
    decoder.feed(data[MAX_PAYLOAD // 64 : MAX_PAYLOAD // 2])
    assert decoder.next() is None
    space = decoder.space
    assert space is not None
    assert len(space) == len(data) - MAX_PAYLOAD // 2
    assert (decoder.lacking, decoder.partial) == (len(space), True)
    decoder.feed(data[MAX_PAYLOAD // 2 :])
    assert decoder.lacking == 0
    assert decoder.next() == Frame("output", {"stream": "stdout"}, bytes(MAX_PAYLOAD))
    assert (decoder.space, decoder.held, decoder.partial) == (None, 0, False)


def test_a_decoder_that_was_fed_nothing_holds_no_part_of_a_frame() -> None:
    decoder = Decoder()
    assert decoder.next() is None
    assert not decoder.partial


def test_a_header_whose_payload_is_yet_to_come_is_a_part_of_a_frame() -> None:
    decoder = Decoder()
    decoder.feed(b'{"type":"output","size":1}\n')
    assert decoder.next() is None
    assert decoder.partial


def test_text_that_is_no_unicode_survives() -> None:
    command = b"echo \xff".decode("utf-8", "surrogateescape")
    assert frames(encode("x", {"shellCmd": command}))[0].fields["shellCmd"] == command


def test_text_takes_no_more_room_than_it_needs() -> None:
    assert len(encode("x", {"shellCmd": "é€" * 1000})) < 5100


def header_of(size: int) -> bytes:
    """A line of so many bytes, with its end."""
    empty = len(encode("x", {"pad": ""}))
    return encode("x", {"pad": "a" * (size - empty)})


def test_a_header_at_its_bound_is_taken() -> None:
    line = header_of(MAX_HEADER)
    assert len(line) == MAX_HEADER
    assert len(frames(line)) == 1


def test_a_header_over_its_bound_is_neither_sent_nor_taken() -> None:
    with pytest.raises(PeerdError, match="header of") as caught:
        header_of(MAX_HEADER + 1)
    assert caught.value.code is Code.BAD_MESSAGE
    line = header_of(MAX_HEADER)
    assert "header longer" in refusal(line.replace(b"aaa", b"aaaa", 1))


@pytest.mark.parametrize("value", ["{}", "[]", '""', "0.5", '{"":{}}'])
def test_a_header_of_very_many_values_is_refused_before_it_takes_memory_for_each(value: str) -> None:
    line = f'{{"type":"x","size":1,"a":[{value}{f",{value}" * (MAX_HEADER // (len(value) + 1) - 20)}]}}\n'.encode()
    decoder = Decoder()
    tracemalloc.start()
    try:
        decoder.feed(line)
        with pytest.raises(PeerdError, match="strings and values"):
            decoder.next()
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_HEADER
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["," * 500_000, '"[{' * 200_000, "\\" * 200_000])
def test_what_is_in_a_string_are_no_values(text: str) -> None:
    assert frames(encode("x", {"a": text, "b": 1}))[0].fields == {"a": text, "b": 1}


def test_a_header_may_have_all_arguments_that_there_may_be() -> None:
    fields = {"argv": ["a"] * 4 * MAX_ARGUMENTS, "env": {f"A{number}": "" for number in range(MAX_VARIABLES)}}
    assert frames(encode("x", fields))[0].fields == fields


def test_the_bound_of_a_header_may_be_another_for_the_next() -> None:
    decoder = Decoder()
    decoder.feed(header_of(100) * 3)
    assert decoder.next()
    decoder.max_header = 99
    with pytest.raises(PeerdError, match="header longer than 99 bytes"):
        decoder.next()
    decoder.max_header = 100
    assert decoder.next()


def test_a_payload_at_its_bound_is_taken() -> None:
    payload = bytes(MAX_PAYLOAD)
    assert frames(encode("x", None, payload)) == [Frame("x", {}, payload)]


def test_a_payload_over_its_bound_is_neither_sent_nor_taken() -> None:
    with pytest.raises(PeerdError, match="payload of"):
        encode("x", None, bytes(MAX_PAYLOAD + 1))
    assert "size" in refusal(b'{"type":"x","size":%d}\n' % (MAX_PAYLOAD + 1))


def test_a_header_without_end_is_refused_while_little_is_held() -> None:
    decoder = Decoder()
    chunk = b'"' * 4096
    fed = 0

    def feed_for_ever() -> None:
        nonlocal fed
        while True:
            decoder.feed(chunk)
            fed += len(chunk)
            assert decoder.next() is None

    with pytest.raises(PeerdError, match="header longer"):
        feed_for_ever()
    assert fed <= MAX_HEADER + len(chunk)
    assert sys.getsizeof(decoder._buffer) <= 2 * MAX_HEADER


def test_what_was_decoded_is_no_longer_held() -> None:
    decoder = Decoder()
    payload = bytes(MAX_PAYLOAD)
    for _ in range(20):
        decoder.feed(encode("x", None, payload))
        assert decoder.next() is not None
    assert sys.getsizeof(decoder._buffer) <= 2 * MAX_PAYLOAD


@pytest.mark.parametrize("type_", ["null", '""', "1", "[]", "{}", "true", f'"{"a" * (MAX_TYPE + 1)}"'])
def test_a_type_must_be_a_short_string(type_: str) -> None:
    assert "type" in refusal(f'{{"type":{type_}}}\n'.encode())


def test_a_type_must_be_there() -> None:
    assert "type" in refusal(b"{}\n")


def test_a_type_at_its_bound_is_taken() -> None:
    assert frames(encode("a" * MAX_TYPE))[0].type == "a" * MAX_TYPE


@pytest.mark.parametrize(
    "size", ["-1", "true", "false", "1.0", "1e3", '"1"', "null", "[]", "{}", "9" * 100, f"-{'9' * 100}"]
)
def test_a_size_must_be_a_whole_number_within_its_bound(size: str) -> None:
    assert "size" in refusal(f'{{"type":"x","size":{size}}}\n'.encode())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"GET / HTTP/1.1\r",
        b"{",
        b"}",
        b'{"type":"x"',
        b'{"type":"x"}}',
        b"{'type':'x'}",
        b'{"type":"x",}',
        b'{"type":"\xff"}',
        b'{"type":"x","a":"\xc3"}',
        b'{"type":"x","a":NaN}',
        b'{"type":"x","a":Infinity}',
        b'{"type":"x","a":-Infinity}',
        b'{"type":"x","a":' + b"9" * 100_000 + b"}",
        b'{"type":"x","a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"type":"x","a":' + b'{"a":' * 80_000 + b"1" + b"}" * 80_000 + b"}",
        b"[" * 500_000,
        b"null",
        b"1",
        b'"type"',
        b"[]",
        b'[{"type":"x"}]',
        b"\0",
    ],
    ids=lambda line: repr(line[:24]),
)
def test_a_line_that_is_no_json_object_is_refused(line: bytes) -> None:
    assert refusal(line + b"\n")


@pytest.mark.parametrize("coding", ["utf-16-be", "utf-16-le", "utf-16", "utf-32", "utf-8-sig"])
def test_a_line_in_another_coding_than_utf_8_is_refused(coding: str) -> None:
    assert refusal('{"type":"x"}'.encode(coding) + b"\n")


def test_a_number_too_large_to_be_one_is_not_taken_for_a_size() -> None:
    assert "size" in refusal(b'{"type":"x","size":1e999}\n')


@given(st.binary(max_size=200))
@example(b"\n")
@example(b"{}\n")
@example(b"\xff\xfe\n")
def test_random_bytes_are_a_frame_or_refused(data: bytes) -> None:
    take_all(data + b"\n")


@given(FRAMES, st.data())
def test_a_frame_with_a_few_bytes_changed_is_a_frame_or_refused(frame: Frame, data: st.DataObject) -> None:
    changed = bytearray(wire(frame))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(("set", "insert", "delete"))):
            case "set":
                changed[place] = data.draw(st.integers(0, 255))
            case "insert":
                changed.insert(place, data.draw(st.sampled_from(b'{}[]",:\n\\0')))
            case _ if len(changed) > 1:
                del changed[place]
    take_all(bytes(changed) + b"\n")


def take_all(data: bytes) -> None:
    """Decode to the end; only BAD_MESSAGE may be raised, and what comes out keeps the bounds."""
    decoder = Decoder()
    decoder.feed(data)
    refused: PeerdError | None = None
    while refused is None:
        try:
            frame = decoder.next()
        except PeerdError as error:
            refused = error
            break
        if frame is None:
            return
        assert 0 < len(frame.type) <= MAX_TYPE
        assert len(frame.payload) <= MAX_PAYLOAD
        json.dumps(dict(frame.fields))
    assert refused.code is Code.BAD_MESSAGE
    assert refused.sentence.isprintable()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_has_no_word_for_is_not_sent(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode("x", {"a": value})
