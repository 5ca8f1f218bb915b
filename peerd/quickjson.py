"""JSON for the client: what :mod:`json` is built on in CPython, without that module's own import.

That would take as long as the interpreter itself, most of it for :mod:`re`. Where another Python has these parts in
another form, it is :mod:`json` all the same. Pure code.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from _json import encode_basestring, make_encoder, make_scanner

    class _Context:
        """The settings of a decoder, as json.decoder.JSONDecoder has them by default."""

        strict = True
        object_hook = object_pairs_hook = parse_constant = array_hook = None
        parse_float = float
        parse_int = int

    _scan = make_scanner(_Context())  # type: ignore[arg-type]
    _encode = make_encoder(None, repr, encode_basestring, None, ":", ",", False, False, False)

    def loads(text: str) -> "Any":
        """The value that a text is, which starts with it."""
        return _scan(text, 0)[0]

    def dumps(value: object) -> str:
        """A value, of what JSON has, as a text; no character is escaped that need not be."""
        return "".join(_encode(value, 0))

except (ImportError, AttributeError, TypeError):
    from functools import partial
    from json import dumps as _dumps
    from json import loads  # type: ignore[assignment]

    dumps = partial(_dumps, ensure_ascii=False)


__all__ = ["dumps", "loads"]
