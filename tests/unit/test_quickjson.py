"""JSON as the client reads and writes it."""

from __future__ import annotations

import json
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from peerd import quickjson

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_values_are_as_json_has_them(value: object) -> None:
    assert quickjson.dumps(value) == json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    assert quickjson.loads(json.dumps(value)) == value


def test_it_loads_nothing_that_takes_time() -> None:
    code = "import sys; sys.path.append(sys.argv[1]); import peerd.client; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, sys.path[0]], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.split()
    assert "peerd.quickjson" in loaded
    assert not {"json", "re", "enum", "signal", "socket", "os", "errno", "__future__"} & set(loaded)
