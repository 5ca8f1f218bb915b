"""The pipes that a caller on D-Bus reads a command's output from."""

from __future__ import annotations

import pytest

from peerd.buspipes import Pipes
from unit.support import descriptors, scarce


@pytest.mark.parametrize("count", range(4))
def test_pipes_that_cannot_all_be_made_leave_none(count: int) -> None:
    before = descriptors()
    with scarce(count), pytest.raises(OSError, match="Too many open files"):
        Pipes()
    assert descriptors() == before
