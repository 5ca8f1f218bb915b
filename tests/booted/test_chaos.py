"""Commands among three machines while things break at random: each runs once, and its end is the true one."""

from __future__ import annotations

import pytest
from lab import Lab
from lab.chaos import Chaos

from .conftest import PEERS, wait_for_peers

SEED = 3600


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commands_keep_their_promises_while_things_break(lab: Lab) -> None:
    report = Chaos(lab, list(PEERS), SEED).run(200, 90)
    print(report)
    assert not report.wrong, "\n".join([str(report), *report.wrong])
    assert report.outcomes["exited"] > 20
    assert sum(report.faults.values()) > 5
    wait_for_peers(lab["vps"])
