"""The slice of the commands: it goes before peerd, and neither takes the other with it."""

from pathlib import Path

UNITS = Path(__file__).parents[2] / "units"


def lines_that_name(other: str, unit: str) -> list[str]:
    return [line for line in (UNITS / unit).read_text().splitlines() if "=" in line and other in line]


def test_at_shutdown_commands_stop_before_who_hears_of_their_ends() -> None:
    # What starts later stops first, and a scope starts after its slice (systemd.unit(5), systemd.slice(5)).
    assert lines_that_name("peerd.service", "peerd-exec.slice") == ["After=peerd.service"]
    assert lines_that_name("peerd-exec.slice", "peerd.service") == ["Wants=peerd-exec.slice"]
