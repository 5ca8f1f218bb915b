"""What people and scripts meet in a shell: completion, the helpers of the seed, colours, and advice."""

from __future__ import annotations

import json

import pytest
from lab import Machine

BASH = """
    source /usr/share/bash-completion/bash_completion; _completion_loader d
    COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _d; printf '%%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """zsh -f -c '
    autoload -Uz compinit; compinit -D; functions _d >/dev/null || exit 1
    compadd() { [[ $1 = -- ]] && shift; print -l -- "$@"; }
    words=(%s); CURRENT=$#words; _d'
"""
FISH = "fish --no-config -c 'source /usr/share/fish/vendor_completions.d/d.fish; complete -C \"%s\"'"
LOGIN, SCRIPT, BARE = "bash -lc", "sh -c", "env -i PATH=/usr/bin:/bin bash --norc --noprofile -c"


@pytest.mark.parametrize("shell", [BASH, ZSH, FISH], ids=["bash", "zsh", "fish"])
def test_tab_completes_commands_options_values_and_peers(desktop: Machine, shell: str) -> None:
    # bash has three words for --peer=l, as COMP_WORDBREAKS says, and replaces the last one.
    one_word = "" if shell is BASH else "--peer="
    for words, offered in (
        ("d remoteP", "remotePull"),
        ("d remotePull --peer ", "desktop laptop vps"),
        ("d remotePull --peer l", "laptop"),
        ("d setPeerConfig --role w", "worker"),
        ("d execOnPeer --sh", "--shellCmd"),
        ('d remotePull --peer \\"l', "laptop"),
        ("d remotePull --peer = l" if shell is BASH else "d remotePull --peer=l", one_word + "laptop"),
    ):
        typed = words if shell is FISH or not words.endswith(" ") else f"{words}''"
        typed = typed.replace("''", '""') if shell is ZSH else typed
        assert desktop.out(shell % typed).split() == offered.split()


def test_completion_does_not_wait_for_a_leader_that_is_away(desktop: Machine, vps: Machine) -> None:
    vps.link_down()
    try:
        assert desktop.run("d --complete remotePull --peer ''", timeout=3).stdout == b"desktop\nlaptop\nvps\n"
    finally:
        vps.link_up()
    vps.wait_until("d listPeers | jq -e 'map(select(.is_online)) | length == 3'", 60)
    desktop.wait_until("d getPeerStatus | jq -e .connected_to_leader", 60)


@pytest.mark.parametrize("shell", [LOGIN, SCRIPT, BARE], ids=["login", "script", "bare"])
def test_the_helpers_by_address_are_there_in_every_shell(desktop: Machine, shell: str) -> None:
    assert desktop.out(f"{shell} 'getPeerIdByIp 10.0.0.4'") == "laptop"
    there = 'execOnPeerByIp 10.0.0.4 /tmp "hostname; pwd; exit 3"'
    result = desktop.run(f"{shell} '{there}'", check=False)
    assert (result.returncode, result.stdout, result.stderr) == (3, b"laptop\n/tmp\n", b"")


def test_the_helpers_by_address_say_what_is_wrong(desktop: Machine) -> None:
    for command in ("getPeerIdByIp 10.0.0.77", "execOnPeerByIp 10.0.0.77 / true"):
        unknown = desktop.run(command, check=False)
        assert unknown.returncode == 255
        assert unknown.stderr.startswith(b"Peer not found: 10.0.0.77\n")
    for command in ("getPeerIdByIp", "getPeerIdByIp laptop", "execOnPeerByIp 10.0.0.4 /"):
        wrong = desktop.run(command, check=False)
        assert (wrong.returncode, wrong.stdout) == (2, b"")
        assert wrong.stderr
    late = desktop.run("execOnPeerByIp 10.0.0.4 / 'sleep 60' --timeout 0.3", check=False)
    assert late.returncode == 124


def test_a_slip_is_answered_with_what_was_meant(desktop: Machine, vps: Machine) -> None:
    for machine in (desktop, vps):
        slip = machine.run("d execOnPeer --peer lpatop --directory / --shellCmd true", check=False)
        assert slip.returncode == 255
        assert slip.stderr.startswith(b"Peer not found: lpatop\n  Did you mean laptop?\n")
    assert b"Did you mean listPeers" in desktop.run("d listpeers", check=False).stderr


def test_colours_are_for_terminals_whose_user_wants_them(desktop: Machine) -> None:
    terminal = "script -qec 'd listPeers' /dev/null"
    assert "\x1b[32myes" in desktop.out(terminal)
    for quiet in (
        f"NO_COLOR=1 {terminal}",
        f"TERM=dumb {terminal}",
        "d listPeers",
        "script -qec 'd listPeers --json' /dev/null",
    ):
        assert "\x1b" not in desktop.out(quiet)
    assert json.loads(desktop.out("d listPeers"))
