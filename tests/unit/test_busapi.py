"""What there is on D-Bus: derived from the table of commands, and valid by the D-Bus specification."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from dbus_next import introspection, validators
from hypothesis import given
from hypothesis import strategies as st

from peerd import busapi, validate
from peerd.busapi import CALLABLE, INTERFACES, MANAGER, PEER, ROOT
from peerd.commands import BY_NAME, COMMANDS, Access
from peerd.errors import Code, PeerdError

UNITS = Path(__file__).parents[2] / "units"
PATHS = {busapi.peer_path("vps"): PEER, busapi.peer_path("web-1"): PEER, busapi.job_path("0" * 16): busapi.JOB}
IDS = st.from_regex(validate._NAME, fullmatch=True)


@pytest.mark.parametrize(
    ("peer_id", "last"), [("vps", "vps"), ("web-1", "web_2d1"), ("10.0.0.1", "_310_2e0_2e0_2e1"), ("a_b", "a_5fb")]
)
def test_a_peer_has_an_object(peer_id: str, last: str) -> None:
    assert busapi.peer_path(peer_id) == f"{busapi.PEERS}/{last}"


@given(IDS, IDS)
def test_every_id_has_a_valid_path_of_its_own(one: str, other: str) -> None:
    assert validators.is_object_path_valid(busapi.peer_path(one))
    assert (busapi.peer_path(one) == busapi.peer_path(other)) == (one == other)


@pytest.mark.parametrize("path", ["/", "/org", "/org/automatelinux", ROOT, busapi.PEERS, *PATHS])
def test_introspection_is_what_the_specification_has(path: str) -> None:
    xml = busapi.introspection(path, PATHS)
    node = introspection.Node.parse(xml)
    assert [interface.name for interface in node.interfaces] == list(busapi.interfaces_of(path, PATHS))
    for interface in node.interfaces:
        described = INTERFACES[interface.name]
        assert [method.name for method in interface.methods] == list(described.methods)
        assert [method.in_signature for method in interface.methods] == [
            method.signature for method in described.methods.values()
        ]
        assert [method.out_signature for method in interface.methods] == [
            method.returns for method in described.methods.values()
        ]
        assert [signal.name for signal in interface.signals] == list(described.signals)
        assert [shown.name for shown in interface.properties] == list(described.properties)


def test_every_object_is_reached_from_the_root() -> None:
    found, ahead = set(), ["/"]
    while ahead:
        path = ahead.pop()
        found.add(path)
        children = [node.get("name") for node in ET.fromstring(busapi.introspection(path, PATHS)).findall("node")]
        ahead += [f"{path.rstrip('/')}/{name}" for name in children]
    assert {ROOT, busapi.PEERS, busapi.JOBS, *PATHS} <= found
    assert all(busapi.interfaces_of(path, PATHS) for path in found)


@pytest.mark.parametrize("path", ["/nowhere", f"{ROOT}/jobs", f"{busapi.PEERS}/nas", f"{ROOT}2"])
def test_there_is_nothing_anywhere_else(path: str) -> None:
    assert busapi.interfaces_of(path, PATHS) == ()


def test_every_command_but_help_is_a_method() -> None:
    assert {command.name for command in CALLABLE.values()} == {command.name for command in COMMANDS} - {"help"}
    assert list(INTERFACES[MANAGER].methods) == [*CALLABLE, busapi.START]
    execute = INTERFACES[MANAGER].methods["ExecOnPeer"]
    assert (execute.signature, execute.returns) == ("sssa{sv}", "siayay")


def test_the_names_of_members_are_valid() -> None:
    for interface in INTERFACES.values():
        for name in (*interface.methods, *interface.signals, *interface.properties):
            assert validators.is_member_name_valid(name)
    assert all(validators.is_interface_name_valid(busapi.error_name(code)) for code in Code)
    assert len({busapi.error_name(code) for code in Code}) == len(Code)


def test_arguments_become_the_parameters_of_the_command() -> None:
    command = BY_NAME["execOnPeer"]
    assert busapi.parameters(command, ["vps", "/", "true", {"timeout": 3.0}]) == {
        "peer": "vps",
        "directory": "/",
        "shell_cmd": "true",
        "timeout": 3.0,
    }
    assert "shell_cmd" not in busapi.parameters(command, ["vps", "/", "", {"argv": ["true"]}])
    assert busapi.parameters(BY_NAME["ping"], [{}]) == {}
    deploy = BY_NAME["remoteDeployDaemon"]
    assert busapi.parameters(deploy, ["vps", {"no-rollback": True}]) == {"peer": "vps", "no_rollback": True}
    assert busapi.parameters(BY_NAME["getPeerInfo"], ["vps"]) == {"peer": "vps"}


@pytest.mark.parametrize("option", ["peer", "shell_cmd", "stdin"])
def test_an_argument_is_no_option(option: str) -> None:
    with pytest.raises(PeerdError, match=option) as caught:
        busapi.parameters(BY_NAME["execOnPeer"], ["vps", "/", "true", {option: "x"}])
    assert caught.value.code is Code.USAGE


def test_only_commands_that_look_are_open_to_the_user_at_the_machine() -> None:
    policy = ET.parse(UNITS / "polkit-1/org.automatelinux.peerd1.policy").getroot()
    active = {action.get("id"): action.findtext("defaults/allow_active") for action in policy.findall("action")}
    assert active == {busapi.action(access): "yes" if access is Access.READ else "auth_admin_keep" for access in Access}
    reading = {command.name for command in COMMANDS if command.access is Access.READ}
    assert reading == {"getPeerStatus", "listPeers", "getPeerInfo", "getPeerIdByIp", "ping", "version", "listCommands"}


def test_files_name_the_bus_name() -> None:
    for path in (UNITS / "dbus-1").iterdir():
        assert path.stem == busapi.NAME
        assert set(re.findall(r"org\.automatelinux\.\w+", path.read_text())) == {busapi.NAME}


def test_properties_are_fields_that_there_are() -> None:
    peer = {shown.source for shown in INTERFACES[PEER].properties.values()}
    from peerd.peers import Peer

    assert peer == set(Peer("vps", "10.0.0.1").to_wire())
