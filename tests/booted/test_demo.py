"""The demo is a test too: it checks every result that it shows."""

import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT, SUITES


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.timeout(400)
def test_the_demo_holds_and_leaves_nothing(suite: str, package: Path) -> None:
    demo = subprocess.run(
        [ROOT / "tests/lab/demo", "--suite", suite, "--deb", package], capture_output=True, text=True, check=False
    )
    assert demo.returncode == 0, demo.stdout[-3000:] + demo.stderr
    assert demo.stdout.rstrip().splitlines()[-1].startswith("All ")
    assert not demo.stderr
