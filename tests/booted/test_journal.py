"""The records of a machine: found by command, unit and peer, explained, and the same on both ends."""

from __future__ import annotations

from lab import Machine


def run_one(asking: Machine, peer: str, command: str) -> str:
    """Run a command on a peer to its end, and return its id."""
    return asking.out(f"d execOnPeer --peer {peer} --directory /tmp --shellCmd 'echo $PEERD_EXEC_ID; {command}'")


def test_the_catalog_explains_records(desktop: Machine, laptop: Machine) -> None:
    exec_id = run_one(desktop, "laptop", "true")
    for machine, subject in ((desktop, "A command on laptop has ended: exited"), (laptop, "A command was started")):
        query = f"journalctl -q -x --no-pager -t peerd PEERD_EXEC_ID={exec_id}"
        machine.wait_until(f"{query} PEERD_OUTCOME=exited | grep -q .")
        shown = machine.out(query)
        assert subject in shown
        assert f"journalctl -t peerd PEERD_EXEC_ID={exec_id}" in shown
        assert "@PEERD" not in shown
    assert "Documentation: man:peerd.conf(5)" in desktop.out("journalctl --dump-catalog")


def test_the_records_of_a_command_are_among_those_of_its_scope(desktop: Machine, laptop: Machine) -> None:
    exec_id = run_one(desktop, "laptop", "true")
    query = f"journalctl -q -o cat -u peerd-exec-{exec_id}.scope"
    laptop.wait_until(f"{query} | grep -q 'ended: exited'")
    records = [line for line in laptop.out(query).splitlines() if line.startswith(exec_id)]
    assert len(records) == 2
    assert records[0].startswith(f"{exec_id} for desktop runs in /tmp: ")
    assert records[1] == f"{exec_id} for desktop ended: exited, exit status 0"
