"""Look for bytes that break the protocol, guided by what code they reach: atheris, an engine on libFuzzer."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["peerd"]):
    from fuzz import frames


def one(data: bytes) -> None:
    """One input of the fuzzer."""
    frames.check(data)


def main() -> None:
    """Run the fuzzer with the options of libFuzzer on the command line; it never returns."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(frames.SEEDS):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], *sys.argv[1:], corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
