"""Roles, the registry and the links between the machines."""

from __future__ import annotations

import json

from lab import Lab, Machine

from .conftest import PEERS, UNITS, wait_for_peers


def peers(machine: Machine) -> dict[str, dict[str, object]]:
    """The registry as a machine shows it, by id; without what is no peer."""
    return {peer["peer_id"]: peer for peer in json.loads(machine.out("d listPeers")) if peer["state"] == "registered"}


def test_every_machine_shows_the_same_registry(lab: Lab) -> None:
    for name in PEERS:
        listed = list(peers(lab[name]).values())
        first = ["peer_id", "ip_address", "mac_address", "hostname", "last_seen", "is_online", "daemon_version"]
        assert all(list(peer)[:7] == first for peer in listed)
        assert {peer["peer_id"]: peer["ip_address"] for peer in listed} == PEERS
        assert all(peer["is_online"] and peer["daemon_version"] for peer in listed)
        assert all(peer["hostname"] == peer["peer_id"] for peer in listed)
        assert [peer["mac_address"] for peer in listed] == [
            lab[other].out("ip -o link show eth0 | grep -o 'ether [^ ]*' | cut -c7-") for other in PEERS
        ]
        info = json.loads(lab[name].out("d getPeerInfo --peer laptop"))
        assert info["ip_address"] == "10.0.0.4"


def test_the_leader_records_the_wireguard_keys(lab: Lab) -> None:
    for name in ("desktop", "laptop"):
        assert peers(lab["desktop"])[name]["public_key"] == lab[name].out("wg show wg0 public-key")


def test_the_status_of_leader_and_worker(vps: Machine, desktop: Machine) -> None:
    leader, worker = (json.loads(machine.out("d getPeerStatus")) for machine in (vps, desktop))
    wanted = ["role", "peer_id", "leader_address", "is_leader", "connected_to_leader"]
    assert list(leader)[:6] == [*wanted, "connected_workers"]
    assert list(worker)[:5] == wanted
    assert (leader["role"], leader["is_leader"], leader["connected_workers"]) == ("leader", True, 2)
    assert [worker[key] for key in wanted] == ["worker", "desktop", "10.0.0.1", False, True]


def test_a_table_on_a_terminal_and_json_elsewhere(desktop: Machine) -> None:
    assert desktop.out("script -qec 'd listPeers' /dev/null").startswith("\x1b[1mPEER ID")
    shown = desktop.out("NO_COLOR=1 script -qec 'd listPeers' /dev/null")
    assert shown.split()[0] == "PEER"
    assert "10.0.0.4" in shown
    assert json.loads(desktop.out("script -qec 'd listPeers --json' /dev/null"))


def test_an_id_belongs_to_the_address_that_first_registered_it(stranger: Machine, vps: Machine) -> None:
    refused = stranger.run("d setPeerConfig --role worker --id laptop --leader 10.0.0.1", check=False)
    assert refused.returncode == 255
    assert refused.stderr.startswith(b"Peer id is taken: laptop belongs to 10.0.0.4\n")
    assert json.loads(stranger.out("d getPeerStatus"))["role"] is None
    assert peers(vps)["laptop"]["ip_address"] == "10.0.0.4"


def test_an_address_has_one_id_until_it_is_deleted(stranger: Machine, vps: Machine, desktop: Machine) -> None:
    stranger.run("d registerWorker")
    renamed = stranger.run("d setPeerConfig --id other", check=False)
    assert renamed.returncode == 255
    assert renamed.stderr.startswith(b"Address is taken: 10.0.0.9 is registered as stranger\n")
    assert desktop.out("d execOnPeer --peer stranger --directory / --shellCmd hostname") == "stranger"
    assert desktop.out("d deletePeer --peer stranger") == "Deleted peer: stranger"
    assert "stranger" not in peers(vps)
    # A deleted peer stays away until it is told to register again.
    stranger.wait_until("d getPeerStatus | jq -e '.connected_to_leader | not'")
    denied = stranger.run("d execOnPeer --peer vps --directory / --shellCmd true", check=False)
    assert denied.returncode == 255
    assert denied.stderr.startswith(b"Peer stranger was deleted from the registry\n")
    stranger.run("d setPeerConfig --id other")
    assert peers(vps)["other"]["ip_address"] == "10.0.0.9"
    vps.run("d deletePeer --peer other")


def test_the_leader_cannot_delete_itself(vps: Machine) -> None:
    refused = vps.run("d deletePeer --peer vps", check=False)
    assert refused.returncode == 255
    assert "vps" in peers(vps)


def test_dbSanityCheck_deletes_what_a_worker_should_not_have(laptop: Machine) -> None:
    clean = json.loads(laptop.out("d dbSanityCheck"))
    assert (clean["role"], clean["issues_found"], clean["actions"]) == ("worker", False, [])
    insert = "INSERT INTO peer_registry VALUES ('old', '10.0.0.77', '', 'old', '1', '', 0, 0)"
    laptop.run(
        [
            "python3",
            "-c",
            f"import sqlite3; c = sqlite3.connect('/var/lib/peerd/peerd.db'); c.execute(\"{insert}\"); c.commit()",
        ]
    )
    found = json.loads(laptop.out("d dbSanityCheck"))
    assert found["issues_found"] is True
    assert found["actions"][0]["peer_ids"] == ["old"]
    assert json.loads(laptop.out("d dbSanityCheck"))["issues_found"] is False


def test_workers_reach_each_other_while_the_leader_is_away(lab: Lab, vps: Machine, desktop: Machine) -> None:
    vps.run(f"systemctl stop {UNITS}")
    desktop.wait_until("d getPeerStatus | jq -e '.connected_to_leader | not'")
    assert desktop.out("d execOnPeer --peer laptop --directory / --shellCmd hostname") == "laptop"
    unknown = desktop.run("d execOnPeer --peer nas --directory / --shellCmd true", check=False)
    assert unknown.returncode == 255
    assert unknown.stderr.startswith(b"Not connected to leader\n")
    away = desktop.run("d listPeers", check=False)
    assert away.stderr.startswith(b"Not connected to leader\n")
    assert {peer["peer_id"]: peer["is_online"] for peer in json.loads(away.stdout)}["vps"] is False
    gone = desktop.run("d execOnPeer --peer vps --directory / --shellCmd true", check=False)
    assert gone.returncode == 255
    assert gone.stderr.startswith(b"Failed to connect to peer: vps (10.0.0.1)\n")
    vps.run("systemctl start peerd.socket peerd-tcp.socket peerd.service")
    for name in PEERS:
        wait_for_peers(lab[name])


def test_a_worker_joins_again_when_wireguard_comes_back(desktop: Machine, vps: Machine) -> None:
    desktop.wireguard_down()
    vps.wait_until("d getPeerInfo --peer desktop | jq -e '.is_online | not'", 60)
    desktop.wireguard_up()
    desktop.wait_until("d getPeerStatus | jq -e .connected_to_leader", 30)
    wait_for_peers(desktop)
    assert vps.out("d execOnPeer --peer desktop --directory / --shellCmd hostname") == "desktop"


def test_a_worker_that_boots_joins_by_itself(laptop: Machine, vps: Machine) -> None:
    laptop.stop()
    vps.wait_until("d getPeerInfo --peer laptop | jq -e '.is_online | not'", 60)
    down = vps.run("d execOnPeer --peer laptop --directory / --shellCmd true", check=False)
    assert down.returncode == 255
    assert down.stderr.startswith(b"Failed to connect to peer: laptop (10.0.0.4)\n")
    laptop.start()
    wait_for_peers(vps)
    assert vps.out("d execOnPeer --peer laptop --directory / --shellCmd hostname") == "laptop"


def test_ping_asks_a_peers_daemon(desktop: Machine) -> None:
    assert desktop.out("d ping") == "pong"
    assert desktop.out("d ping --peer laptop").startswith("pong from laptop (10.0.0.4) in ")
