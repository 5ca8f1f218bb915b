"""Every attacker of the threat model in peerd(8), on booted machines; tests/attacks.md is written from here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fuzz import frames
from lab import Lab, Machine

from peerd.errors import Code, PeerdError

from .attacks import FLOOD, HELLO, IMPOSTOR, LIAR, STORM, Table, frame, run_request, talk
from .conftest import PEERS, UNITS, wait_for_peers

LAN = "a host on the LAN"
VPN = "a host of the VPN that is no peer"
PEER = "a registered but hostile peer"
USER = "a local user outside the group"
MEMBER = "a member of the group"
OUTPUT = "hostile output of a command or a peer"
RAN = "/root/broken-in"
CONF = "/etc/peerd/peerd.conf.d/test.conf"
ESCAPES = "\x1b[2J\x1b]0;owned\x07\nforged record\r"


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """The table, compared at the end with the one that is committed."""
    table = Table()
    failed = request.session.testsfailed
    yield table
    here = [item for item in request.session.items if item.path.name == "test_attacks.py"]
    wanted = {name for name in globals() if name.startswith("test_")}
    complete = failed == request.session.testsfailed and wanted == {item.originalname for item in here}  # type: ignore[attr-defined]
    differences = list(table.differences(complete))
    assert not differences, "".join(differences)


@pytest.fixture(autouse=True)
def _unharmed(lab: Lab) -> Iterator[None]:
    """After each attack: nothing ran, the same daemons run, their registry is whole and they serve one another."""
    restarts = {name: lab[name].out("systemctl show -P NRestarts peerd") for name in PEERS}
    yield
    for name in PEERS:
        assert not lab[name].ok(f"test -e {RAN}")
        assert lab[name].out("systemctl show -P NRestarts peerd") in (restarts[name], "0")
        wait_for_peers(lab[name])
    assert lab["desktop"].out("d execOnPeer --peer vps --directory / --shellCmd 'echo on'") == "on"


@contextmanager
def configured(machine: Machine, text: str) -> Iterator[None]:
    """With these settings in force."""
    machine.write(CONF, text)
    machine.run("systemctl reload peerd")
    try:
        yield
    finally:
        machine.run(f"rm {CONF}; systemctl reload peerd")


def greeted_only(answer: bytes) -> bool:
    """Whether a greeting and nothing else was answered before the end of the connection."""
    return answer.startswith(b'{"type":"hello"') and answer.endswith(b"}\n") and answer.count(b"{") == 1


def make_fresh(machine: Machine) -> None:
    """Take role and registry from a machine."""
    machine.run(f"systemctl stop {UNITS}; rm -r /var/lib/peerd/*")
    machine.run("systemctl start peerd.socket peerd-tcp.socket peerd.service")


def claims(machine: Machine) -> list[tuple[str, str, str]]:
    """What was claimed: id, address and state."""
    listed = json.loads(machine.out("d listPeers"))
    return [
        (entry["peer_id"], entry["ip_address"], entry["state"]) for entry in listed if entry["state"] != "registered"
    ]


def forget_claims(leader: Machine) -> None:
    """Delete what was claimed, and nothing else."""
    for peer_id, address, _ in claims(leader):
        leader.run(["d", "deletePeer", "--peer", peer_id, "--address", address])
    assert claims(leader) == []


def rss(machine: Machine) -> int:
    """KiB that the daemon has in memory."""
    return int(machine.out("awk '/VmRSS/ {print $2}' /proc/$(systemctl show -P MainPID peerd)/status"))


# --- a host on the LAN


def test_the_underlay(outsider: Machine, vps: Machine, desktop: Machine, table: Table) -> None:
    for target in (vps, desktop):
        assert talk(outsider, target.underlay, run_request(RAN)) == b"TimeoutError\n"
    table.add(LAN, "connects to the port on a machine's address in the LAN", "no answer; nothing ran")


def test_a_forged_source_on_the_underlay(outsider: Machine, vps: Machine, desktop: Machine, table: Table) -> None:
    outsider.run("ip address add 10.0.0.4/32 dev eth0")
    try:
        for target, address in ((vps, "10.0.0.1"), (desktop, "10.0.0.2")):
            outsider.run(f"ip route replace {address} via {target.underlay} src 10.0.0.4")
            assert talk(outsider, address, run_request(RAN), "10.0.0.4") == b"TimeoutError\n"
    finally:
        outsider.run("ip address del 10.0.0.4/32 dev eth0")
    table.add(LAN, "sends to a machine's VPN address from a peer's VPN address", "no answer; nothing ran")


def test_the_addresses_of_the_vpn_while_it_is_down(outsider: Machine, desktop: Machine, table: Table) -> None:
    stolen = ("10.0.0.1", "10.0.0.4")
    desktop.wireguard_down()
    try:
        for address in stolen:
            outsider.run(f"ip address add {address}/32 dev eth0")
            desktop.run(f"ip route add {address} via {outsider.underlay}")
        with outsider.popen(["python3", "-c", IMPOSTOR], stdout=subprocess.PIPE) as impostor:
            assert impostor.stdout
            assert impostor.stdout.readline() == b"ready\n"
            known = desktop.run("d execOnPeer --peer laptop --directory / --shellCmd true", check=False)
            assert known.returncode == 255
            assert known.stderr.startswith(b"Failed to connect to peer: laptop (10.0.0.4)\n")
            assert b"(there is no interface wg0)" in known.stderr
            desktop.run("systemctl restart peerd")
            desktop.wait_until("d listPeers 2>&1 | grep -q '(there is no interface wg0)'", 20)
            # It would hear whoever goes where the routes lead.
            for address in stolen:
                assert talk(desktop, address, f"to {address}\n".encode()) == b""
            impostor.kill()
            assert impostor.stdout.read() == b"to 10.0.0.1\nto 10.0.0.4\n"
    finally:
        for address in stolen:
            desktop.run(f"ip route del {address}", check=False)
            outsider.run(f"ip address del {address}/32 dev eth0", check=False)
        desktop.wireguard_up()
    desktop.wait_until("d getPeerStatus | jq -e .connected_to_leader", 30)
    table.add(LAN, "has the leader's and a peer's VPN address while a worker's VPN is down", "nobody connects to it")


# --- a host of the VPN that is no peer


def test_a_forged_source_in_the_vpn(stranger: Machine, table: Table) -> None:
    stranger.run("ip address add 10.0.0.4/32 dev wg0")
    try:
        for address in ("10.0.0.1", "10.0.0.2"):
            assert talk(stranger, address, run_request(RAN), "10.0.0.4") == b"TimeoutError\n"
    finally:
        stranger.run("ip address del 10.0.0.4/32 dev wg0")
    table.add(VPN, "sends from a peer's address through its own tunnel", "no answer (WireGuard); nothing ran")


def test_commands_of_a_stranger(stranger: Machine, vps: Machine, table: Table) -> None:
    assert talk(stranger, "10.0.0.2", run_request(RAN)) == b""
    table.add(VPN, "asks a worker to run a command", "connection ended without a word; nothing ran")
    assert greeted_only(talk(stranger, "10.0.0.1", run_request(RAN)))
    table.add(VPN, "asks the leader to run a command", "greeted, as it might register; then ended; nothing ran")
    with configured(vps, "[peerd]\nregistration = closed\n"):
        assert talk(stranger, "10.0.0.1", run_request(RAN)) == b""
    table.add(VPN, "the same where registration is closed", "connection ended without a word; nothing ran")


def test_what_only_a_peer_may_ask(stranger: Machine, table: Table) -> None:
    requests = ("ping", "listPeers", "getPeerInfo", "deletePeer", "approvePeer", "rejectPeer", "heartbeat", "peers")
    for type_ in requests:
        assert greeted_only(talk(stranger, "10.0.0.1", HELLO + frame(type_, peer="stranger")))
        assert talk(stranger, "10.0.0.2", HELLO + frame(type_, peer="stranger")) == b""
    table.add(VPN, "asks about the registry, or to change it, or sends news of it", "connection ended without a word")


def test_a_registration_that_needs_approval(stranger: Machine, vps: Machine, desktop: Machine, table: Table) -> None:
    with configured(vps, "[peerd]\nregistration = approval\n"):
        waits = stranger.run("d registerWorker", check=False)
        assert waits.returncode == 255
        assert waits.stderr.startswith(b"Registration waits for approval: stranger (10.0.0.9)\n")
        assert claims(vps) == claims(desktop) == [("stranger", "10.0.0.9", "pending")]
        for peer in ("vps", "desktop"):
            refused = stranger.run(f"d execOnPeer --peer {peer} --directory / --shellCmd 'touch {RAN}'", check=False)
            assert refused.returncode == 255
        assert greeted_only(talk(stranger, "10.0.0.1", run_request(RAN)))
        table.add(VPN, "registers where that needs approval", "waits, is shown by listPeers, can do nothing")
        vps.run("d rejectPeer --peer stranger")
        stranger.wait_until("d getPeerStatus | jq -e '.leader_error | startswith(\"Registration was rejected\")'", 20)
        refused = stranger.run("d setPeerConfig --id other", check=False)
        assert refused.stderr.startswith(b"Registration was rejected: other (10.0.0.9)\n")
        table.add(VPN, "registers under another id after it was rejected", "refused")
        vps.run("d approvePeer --peer stranger")
        stranger.run("d registerWorker")
        assert stranger.out("d execOnPeer --peer vps --directory / --shellCmd hostname") == "vps"
        vps.run("d deletePeer --peer stranger")
    stranger.run("systemctl restart peerd")
    stranger.wait_until("d getPeerStatus | jq -e '.leader_error | startswith(\"Peer stranger was deleted\")'", 20)
    table.add(VPN, "comes back after it was deleted, also after a restart", "refused until it is told to register")
    with configured(vps, "[peerd]\nregistration = closed\n"):
        closed = stranger.run("d registerWorker", check=False)
        assert closed.returncode == 255
        assert claims(vps) == []
        make_fresh(stranger)
    table.add(VPN, "registers where registration is closed", "connection ended without a word")


def test_takeover_of_an_id(stranger: Machine, vps: Machine, table: Table) -> None:
    refused = stranger.run("d setPeerConfig --role worker --id laptop --leader 10.0.0.1", check=False)
    assert refused.stderr.startswith(b"Peer id is taken: laptop belongs to 10.0.0.4\n")
    assert claims(vps) == [("laptop", "10.0.0.9", "id-taken")]
    assert vps.out("d execOnPeer --peer laptop --directory / --shellCmd hostname") == "laptop"
    forget_claims(vps)
    assert b'"code":"id-taken"' in talk(stranger, "10.0.0.1", HELLO + frame("registerPeer", peer_id="vps"))
    forget = "d deletePeer --peer vps --address 10.0.0.9"
    vps.run(forget)
    table.add(VPN, "registers under the id of a peer, or of the leader", "refused, logged, shown by listPeers")


def test_replay_of_a_registration(stranger: Machine, desktop: Machine, vps: Machine, table: Table) -> None:
    mac, version = desktop.out("cat /sys/class/net/eth0/address"), desktop.out("d version")
    claim = {"peer_id": "desktop", "hostname": "desktop", "mac_address": mac, "daemon_version": version}
    answer = talk(stranger, "10.0.0.1", HELLO + frame("registerPeer", **claim, ip_address="10.0.0.2", joining=True))
    assert b'"code":"id-taken"' in answer
    forget_claims(vps)
    table.add(VPN, "sends the registration of a peer again, byte for byte", "refused, logged, shown by listPeers")


def test_takeover_of_an_address(laptop: Machine, vps: Machine, table: Table) -> None:
    old = laptop.out("wg show wg0 public-key")
    key = laptop.out("wg genkey")
    new = laptop.out(["bash", "-c", 'wg pubkey <<<"$0"', key])

    def give_address_to(private: str, public: str, before: str) -> None:
        vps.run(f"wg set wg0 peer {before} remove; wg set wg0 peer {public} allowed-ips 10.0.0.4/32")
        laptop.run(["bash", "-c", 'wg set wg0 private-key <(echo "$0")', private])
        laptop.wait_until("ping -q -c1 -W1 10.0.0.1", 30)

    was = laptop.out("wg showconf wg0 | sed -n 's/PrivateKey = //p'")
    laptop.run(f"systemctl stop {UNITS}")
    try:
        give_address_to(key, new, old)
        assert greeted_only(talk(laptop, "10.0.0.1", run_request(RAN)))
        answer = talk(laptop, "10.0.0.1", HELLO + frame("registerPeer", peer_id="laptop"))
        assert b'"code":"key-changed"' in answer
        assert claims(vps) == [("laptop", "10.0.0.4", "key-changed")]
        vps.wait_until("journalctl -q -t peerd -o cat | grep -q 'WireGuard key changed: laptop (10.0.0.4)'")
    finally:
        give_address_to(was, old, new)
        # systemctl start of the three names sockets before the service that they start.
        laptop.run("systemctl start peerd.socket peerd-tcp.socket peerd.service")
    wait_for_peers(laptop)
    vps.run("d deletePeer --peer laptop --address 10.0.0.4")
    laptop.run("d registerWorker")
    table.add(VPN, "has a peer's address with another WireGuard key", "the leader serves nothing, and shows it")


def test_a_second_leader(stranger: Machine, desktop: Machine, table: Table) -> None:
    stranger.run("d setPeerConfig --role leader --id vps")
    try:
        news = [{"peer_id": "vps", "ip_address": "10.0.0.9"}]
        for message in (frame("registered", peer_id="desktop"), frame("peers", peers=news), frame("peerRemoved")):
            assert talk(stranger, "10.0.0.2", HELLO + message) == b""
        status = json.loads(desktop.out("d getPeerStatus"))
        assert (status["leader_address"], status["connected_to_leader"]) == ("10.0.0.1", True)
        assert json.loads(desktop.out("d getPeerInfo --peer vps"))["ip_address"] == "10.0.0.1"
        refused = stranger.run(f"d execOnPeer --peer desktop --directory / --shellCmd 'touch {RAN}'", check=False)
        assert refused.returncode == 255
    finally:
        make_fresh(stranger)
    table.add(VPN, "makes itself a second leader and sends workers its news", "no worker follows; nothing ran")


# --- a registered but hostile peer


def test_a_second_id_from_one_address(laptop: Machine, vps: Machine, table: Table) -> None:
    answer = talk(laptop, "10.0.0.1", HELLO + frame("registerPeer", peer_id="other", ip_address="10.0.0.77"))
    assert b'"code":"address-taken"' in answer
    assert claims(vps) == [("other", "10.0.0.4", "address-taken")]
    forget_claims(vps)
    table.add(PEER, "registers a second id from its address", "refused, logged, shown by listPeers")


def test_a_message_that_claims_another_sender(laptop: Machine, vps: Machine, table: Table) -> None:
    with configured(vps, "[allow desktop]\npeers = desktop\n"):
        request = frame("execRequest", execId="77" * 8, directory="/", shellCmd=f"touch {RAN}", peer="desktop")
        answer = talk(laptop, "10.0.0.1", HELLO + request.replace(b"}", b',"peer_id":"desktop","caller":"desktop"}'))
        assert b'"code":"denied"' in answer
    table.add(PEER, "names another peer as the sender of a command", "taken for itself, and denied")


def test_the_policy(laptop: Machine, vps: Machine, table: Table) -> None:
    vps.run("mkdir -p /srv/app; ln -sfn / /srv/app/out; ln -sfn /srv/app /srv/alias")
    rules = """
[allow app]
peers = laptop
users = nobody
directories = /srv/app
shell-commands = pwd
programs = id ...
max-timeout = 5
"""
    good = ["d", "execOnPeer", "--peer", "vps", "--user", "nobody", "--directory", "/srv/app"]
    with configured(vps, rules):
        assert laptop.out([*good, "--shellCmd", "pwd"]) == "/srv/app"
        assert laptop.out([*good, "--", "id", "-un"]) == "nobody"
        assert laptop.out([*good[:-1], "/srv/alias", "--shellCmd", "pwd"]) == "/srv/app"
        bad = (
            ("as root", [*good[:4], "--directory", "/srv/app", "--shellCmd", "pwd"]),
            ("in another directory", [*good[:-1], "/srv", "--shellCmd", "pwd"]),
            ("in another directory by ..", [*good[:-1], "/srv/app/..", "--shellCmd", "pwd"]),
            ("in another directory by a symbolic link", [*good[:-1], "/srv/app/out", "--shellCmd", "pwd"]),
            ("with more after it", [*good, "--shellCmd", "pwd; id"]),
            ("as another program", [*good, "--", "/bin/sh", "-c", "id"]),
            ("with a variable that changes it", [*good, "--env", "LD_PRELOAD=/tmp/x.so", "--", "id"]),
            ("for longer", [*good, "--timeout", "6", "--shellCmd", "pwd"]),
        )
        for how, arguments in bad:
            denied = laptop.run(arguments, check=False)
            assert denied.returncode == 255, how
            assert denied.stderr == PeerdError(Code.DENIED, reason="vps does not allow this").text.encode(), how
            table.add(PEER, f"runs what a rule allows, but {how}", "denied; the reason is in the journal there only")
        denied = vps.run("d checkPolicy --peer laptop --directory /srv/app --shellCmd pwd", check=False)
        assert denied.returncode == 255
        assert json.loads(denied.stdout)["reason"] == "[allow app]: root is not among users"
    with configured(vps, "[peerd]\naccept-exec = no\n"):
        assert laptop.run([*good, "--shellCmd", "pwd"], check=False).returncode == 255
        assert vps.out("d execOnPeer --peer vps --directory / --shellCmd 'echo local'") == "local"
    table.add(PEER, "runs anything where accept-exec is no", "denied; local commands run")
    with configured(vps, "[peerd]\nregistry-admins = desktop\n"):
        for command in ("deletePeer", "approvePeer", "rejectPeer"):
            denied = laptop.run(f"d {command} --peer desktop", check=False)
            reason = "the leader does not allow this (registry-admins)"
            assert denied.stderr == PeerdError(Code.DENIED, reason=reason).text.encode()
    table.add(PEER, "changes the registry where it is not among registry-admins", "denied, logged")


def test_the_whole_story_of_a_command_is_in_both_journals(laptop: Machine, vps: Machine, table: Table) -> None:
    with configured(vps, "[allow laptop]\npeers = laptop\nshell-commands = echo $PEERD_EXEC_ID\n"):
        good = laptop.out("d execOnPeer --peer vps --directory / --shellCmd 'echo $PEERD_EXEC_ID'")
        bad = json.loads(laptop.run("d execOnPeer --peer vps --directory / --json --shellCmd id", check=False).stdout)[
            "exec_id"
        ]

    def events(machine: Machine, exec_id: str, count: int) -> list[str]:
        query = f"journalctl -q -t peerd -o json PEERD_EXEC_ID={exec_id}"
        machine.wait_until(f"[ $({query} | wc -l) -eq {count} ]")
        records = [json.loads(line) for line in machine.out(query).splitlines()]
        assert all(record["MESSAGE_ID"] and record["PEERD_PEER"] and record["PEERD_CALLER"] for record in records)
        return [record["PEERD_EVENT"] for record in records]

    assert events(laptop, good, 2) == events(laptop, bad, 2) == ["command-asked", "command-answered"]
    assert events(vps, good, 3) == ["command-allowed", "command-started", "command-ended"]
    assert events(vps, bad, 2) == ["command-denied", "command-ended"]
    table.add(PEER, "hopes that nobody will know", "asked, decided, started, ended: in the journals of both ends")


@pytest.mark.parametrize("name", ["vps", "desktop"], ids=["leader", "worker"])
def test_what_a_peer_began_before_it_was_rejected(
    lab: Lab, laptop: Machine, vps: Machine, table: Table, name: str
) -> None:
    target, pipe = lab[name], subprocess.PIPE
    run = ["d", "execOnPeer", "--peer", name, "--directory", "/", "--timeout", "600"]
    job = laptop.out([*run, "--detach", "--shellCmd", "exec sleep 3141"])
    with (
        laptop.popen([*run, "--stdin", "--shellCmd", "echo up; exec sh -s intruder"], stdin=pipe, stdout=pipe) as shell,
        laptop.popen(["d", "log", "--peer", name, "--lines", "1", "--follow"], stdout=pipe) as log,
    ):
        assert shell.stdin
        assert shell.stdout
        assert log.stdout
        assert shell.stdout.readline() == b"up\n"
        assert log.stdout.readline()
        vps.run("d rejectPeer --peer laptop")
        try:
            shell.stdin.write(f"touch {RAN}\n".encode())
            shell.stdin.flush()
            assert (shell.wait(60), log.wait(60)) == (255, 255)
            target.wait_until("! pgrep -f '[s]h -s intruder'", 30)
            assert target.ok("pgrep -f '[s]leep 3141'")
            assert target.run(["d", "cancelJob", "--job", job]).returncode == 0
        finally:
            vps.run("d approvePeer --peer laptop")
            laptop.run("d registerWorker")
    wait_for_peers(target)
    table.add(PEER, "goes on with a shell and a log after it was rejected", "both end; its detached command goes on")


def test_mutated_conversations(laptop: Machine, vps: Machine, desktop: Machine, table: Table) -> None:
    conversations = [HELLO + frames.mutated(seed) for seed in range(1000)]
    data = b"".join(len(one).to_bytes(4, "big") + one for one in conversations)
    before = rss(vps)
    with configured(vps, "[peerd]\nregistry-admins =\naccept-exec = no\n"):
        assert laptop.out(["python3", "-c", STORM, "10.0.0.1"], input=data, timeout=100) == "1000"
        assert rss(vps) - before < 32 * 1024
    forget_claims(vps)
    laptop.run("d registerWorker")
    table.add(PEER, "sends 1000 conversations with bytes changed at random", "refused or answered; memory bounded")


def test_headers_and_nesting_without_end(laptop: Machine, vps: Machine, table: Table) -> None:
    before = rss(vps)
    for data in (b"x" * 3_000_000, b"[" * 900_000 + b"\n", b'{"type":"a","size":99999999999}\n', b'{"a":' * 100_000):
        answer = talk(laptop, "10.0.0.1", HELLO + data)
        assert b'"code":"bad-message"' in answer or greeted_only(answer)
    assert rss(vps) - before < 32 * 1024
    table.add(PEER, "sends a header without end, deep JSON, a payload of 99 GB", "refused; memory bounded")


SLEEP = frame("execRequest", execId="EXECID", directory="/", shellCmd="sleep 20")


@pytest.mark.parametrize(
    ("count", "what", "message"),
    [
        (900, "opens 900 connections and says nothing on them", b""),
        (900, "sends half a frame on each of 900 connections", b'{"type":"hel'),
        (200, "runs 200 commands at once", HELLO + SLEEP),
    ],
    ids=["silence", "half frames", "commands"],
)
def test_a_flood_of_connections(
    laptop: Machine, vps: Machine, desktop: Machine, table: Table, count: int, what: str, message: bytes
) -> None:
    before = rss(vps)
    argv = ["python3", "-c", FLOOD, "10.0.0.1", message.hex(), str(count)]
    with laptop.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flood:
        assert flood.stdin
        assert flood.stdout
        # What is over its share may be ended before it has spoken.
        assert int(flood.stdout.readline()) >= min(count, 512)
        for _ in range(5):
            assert desktop.out("d execOnPeer --peer vps --directory / --shellCmd 'echo on'") == "on"
        assert rss(vps) - before < 64 * 1024
        flood.stdin.close()
    table.add(PEER, what, "no more than its half of max-connections; others are served meanwhile")


def test_a_flood_of_requests(laptop: Machine, vps: Machine, desktop: Machine, table: Table) -> None:
    before = rss(vps)
    data = HELLO + frame("ping") * 50_000 + frame("noSuchMessage") * 5_000
    answer = talk(laptop, "10.0.0.1", data)
    assert answer.count(b'{"type":"pong"}\n') == 50_000
    assert answer.count(b'"code":"unknown-message"') == 5_000
    assert desktop.out("d execOnPeer --peer vps --directory / --shellCmd 'echo on'") == "on"
    assert rss(vps) - before < 64 * 1024
    table.add(PEER, "sends 55000 requests at once and reads late", "answered at its pace; memory bounded")


# --- local users


def test_a_local_user(desktop: Machine, vps: Machine, table: Table) -> None:
    as_nobody = ["setpriv", "--reuid=nobody", "--clear-groups"]
    for command in ("d listPeers", f"d execOnPeer --peer vps --directory / --shellCmd 'touch {RAN}'"):
        refused = desktop.run(f"{' '.join(as_nobody)} {command}", check=False)
        assert refused.returncode == 255
        assert refused.stderr.startswith(b"Permission denied: only root and members of the group")
    table.add(USER, "uses d, or the socket", "the kernel refuses the connection")
    desktop.run("chmod 666 /run/peerd/peerd.sock")
    try:
        refused = desktop.run(f"{' '.join(as_nobody)} d listPeers", check=False)
    finally:
        desktop.run("chmod 660 /run/peerd/peerd.sock")
    assert refused.returncode == 255
    assert b"only root and members of the group peerd may use d" in refused.stderr
    table.add(USER, "the same where the mode of the socket is 0666", "peerd refuses the connection")
    speak = "import socket; s = socket.create_connection(('10.0.0.1', 3600), 3); s.settimeout(3); "
    speak += f"s.sendall({run_request(RAN)!r}); print(s.recv(100))"
    spoken = desktop.run([*as_nobody, "python3", "-c", speak], check=False)
    assert b"ConnectionResetError" in spoken.stderr or spoken.stdout == b"b''\n"
    table.add(USER, "speaks to another machine's port as this one", "ended without a word: not a reserved port")
    for path in ("/var/lib/peerd/peerd.db", "/var/lib/peerd", "/etc/peerd/peerd.conf"):
        assert not desktop.ok([*as_nobody, "test", "-w", path])
    assert not desktop.ok([*as_nobody, "ls", "/var/lib/peerd"])
    assert not desktop.ok([*as_nobody, "ln", "-s", "/etc/shadow", "/var/lib/peerd/x"])
    assert not desktop.ok([*as_nobody, "ln", "-s", "/etc/shadow", "/run/peerd/x"])
    table.add(USER, "reads the database, or puts a symbolic link beside it or the socket", "the kernel refuses it")
    modes = desktop.out("stat -c '%U:%G %a %n' /var/lib/peerd /var/lib/peerd/* /run/peerd /run/peerd/* /etc/peerd")
    assert {line.rsplit(" ", 1)[1]: line.rsplit(" ", 1)[0] for line in modes.splitlines()} == {
        "/var/lib/peerd": "root:root 700",
        **dict.fromkeys(
            (f"/var/lib/peerd/{name}" for name in desktop.out("ls /var/lib/peerd").split()), "root:root 600"
        ),
        "/var/lib/peerd/jobs": "root:root 700",
        "/run/peerd": "root:root 755",
        "/run/peerd/peerd.sock": "root:peerd 660",
        "/etc/peerd": "root:root 755",
    }


def test_a_member_of_the_group(desktop: Machine, table: Table) -> None:
    desktop.run("id mallory || useradd -m -G peerd mallory")
    as_member = "setpriv --reuid=mallory --regid=mallory --init-groups"
    assert desktop.out(f"{as_member} d execOnPeer --peer vps --directory / --shellCmd 'id -un'") == "root"
    table.add(MEMBER, "runs a command on a peer, or here", "runs as root: the group is worth as much, by design")


def test_nothing_of_the_daemon_leaks(desktop: Machine, vps: Machine, table: Table) -> None:
    shown = desktop.out(
        'd execOnPeer --peer vps --directory / --shellCmd \'ls /proc/self/fd; env -0 | tr "\\0" "\\n"\''
    )
    numbers = [line for line in shown.splitlines() if line.isdigit()]
    # The fourth is the directory that ls itself reads.
    assert numbers == ["0", "1", "2", "3"]
    leaked = ("LISTEN_", "NOTIFY_", "WATCHDOG_", "INVOCATION_", "JOURNAL_", "STATE_", "CREDENTIALS_", "MAINPID")
    assert not [line for line in shown.splitlines() if line.startswith(leaked)]
    table.add(MEMBER, "looks for descriptors or variables of the daemon in a command", "there are none")
    secret = "s3cr3t-of-this-test"
    command = ["d", "execOnPeer", "--peer", "vps", "--directory", "/", "--stdin", "--env", f"TOKEN={secret}"]
    assert desktop.out([*command, "--shellCmd", "cat"], input=secret.encode()) == secret
    for machine in (desktop, vps):
        machine.run("journalctl --sync")
        assert secret not in machine.out("journalctl -q -b -o json --no-pager -t peerd; journalctl -q -b -u peerd")
    table.add(MEMBER, "looks for variables or input of others' commands in the journal", "neither is there")


# --- hostile text


def test_text_that_drives_a_terminal(stranger: Machine, vps: Machine, desktop: Machine, table: Table) -> None:
    claim = {"peer_id": "stranger", "hostname": ESCAPES, "daemon_version": ESCAPES}
    answer = talk(stranger, "10.0.0.1", HELLO + frame("registerPeer", **claim, joining=True))
    assert b'"type":"registered"' in answer
    # Without colours, which are escapes of peerd's own.
    look = "NO_COLOR=1 script -qec 'd listPeers; d getPeerInfo --peer stranger' /dev/null"
    shown = desktop.out(look).replace("\r\n", "\n")
    assert "forged" in shown
    assert shown.removesuffix("\r").replace("\n", "").isprintable()
    assert len([line for line in shown.splitlines() if line.startswith("forged")]) == 0
    table.add(OUTPUT, "escapes and newlines in the host name and version of a registration", "shown escaped")
    stranger.run(f"systemctl stop {UNITS}")
    lie = frame(
        "result", outcome="failed", exitStatus=0, error={"code": "start-failed", "details": {"reason": ESCAPES}}
    )
    with stranger.popen(["python3", "-c", LIAR], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as liar:
        assert liar.stdin
        assert liar.stdout
        liar.stdin.write(lie)
        liar.stdin.close()
        assert liar.stdout.readline() == b"ready\n"
        told = desktop.run("d execOnPeer --peer stranger --directory / --shellCmd true", check=False)
        liar.kill()
    assert told.returncode == 255
    assert told.stderr.startswith(b"Could not start the command on stranger: ")
    assert told.stderr.decode().replace("\n", "").isprintable()
    stranger.run("systemctl start peerd.socket peerd-tcp.socket peerd.service")
    vps.run("d deletePeer --peer stranger")
    table.add(OUTPUT, "escapes in the error of a peer that lies", "shown escaped; exit status 255")
    for type_ in ("registerPeer", "getPeerInfo"):
        assert b'"code":"bad-message"' in talk(desktop, "10.0.0.1", HELLO + frame(type_, peer_id=ESCAPES, peer=ESCAPES))
    desktop.run(["d", "execOnPeer", "--peer", "vps", "--directory", "/", "--shellCmd", f"true '{ESCAPES}'"])
    for machine in (vps, desktop):
        machine.run("journalctl --sync")
        records = machine.out("journalctl -q -b -t peerd -o json --no-pager").splitlines()
        messages = [json.loads(line)["MESSAGE"] for line in records]
        assert all(isinstance(message, str) and message.isprintable() for message in messages)
    table.add(OUTPUT, "escapes and newlines in ids and commands, in the journal", "one record each, escaped")
