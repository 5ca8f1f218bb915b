"""The limits that systemd puts on the daemon, and that no command feels any of them."""

from __future__ import annotations

import pytest
from lab import Machine

# Each works for root who logged in on the machine, and so has to in a command.
WORK = {
    "sudo": "sudo -u nobody id -un | grep -qx nobody",
    "su": "su -s /bin/sh nobody -c 'id -un' | grep -qx nobody",
    "apt": """
        mkdir -p tiny/DEBIAN && cd tiny
        printf 'Package: tiny\\nVersion: 1\\nArchitecture: all\\n' > DEBIAN/control
        printf 'Maintainer: x <x@x>\\nDescription: x\\n' >> DEBIAN/control
        printf '#!/bin/sh\\nid -u > /root/tiny-was-configured\\n' > DEBIAN/postinst && chmod 755 DEBIAN/postinst
        dpkg-deb -b . /tmp/tiny.deb && apt-get install -y /tmp/tiny.deb && grep -qx 0 /root/tiny-was-configured
        apt-get purge -y tiny && rm /root/tiny-was-configured /tmp/tiny.deb
    """,
    "git": """
        git init -q origin && git -C origin -c user.name=x -c user.email=x@x commit -q --allow-empty -m one
        git clone -q origin copy && git -C copy log --format=%s | grep -qx one
    """,
    "gcc": "echo 'int main(void) { return 0; }' > x.c && gcc x.c && ./a.out",
    "mount": "mkdir m && mount -t tmpfs none m && mountpoint -q m && nsenter -t 1 -m mountpoint -q $PWD/m && umount m",
    "a user namespace": "unshare -Ur id -u | grep -qx 0",
    "a mount and a network namespace": "unshare -mn ip link show lo | grep -q LOOPBACK",
    "ping": "ping -q -c1 -W5 10.0.0.1",
    "a set-user-ID program": """
        cp /usr/bin/id . && chmod u+s id && setpriv --reuid=nobody --clear-groups ./id -u | grep -qx 0
    """,
    "a listening port": "python3 -c \"import socket; socket.create_server(('127.0.0.1', 8123))\"",
    "a device": "exec 3<>/dev/net/tun",
    "a just-in-time compiler": "python3 -c 'import mmap; mmap.mmap(-1, 4096, prot=7)'",
    "real-time scheduling": "chrt --other 0 true",
    "/proc and /sys": "test -w /proc/self/oom_score_adj && test -r /sys/kernel/uevent_seqnum && test -d /proc/1/task",
    "systemd": "systemd-run -q --wait true && systemctl is-active -q peerd",
}


@pytest.mark.parametrize("peer", ["vps", "desktop"], ids=["there", "here"])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_a_command_can_do_what_root_can(desktop: Machine, peer: str, work: str) -> None:
    script = f"cd $(mktemp -d -p /var/tmp) && chmod 755 . && set -e && {{ {work}\n}}"
    argv = ["d", "execOnPeer", "--peer", peer, "--directory", "/root", "--timeout", "60", "--shellCmd", script]
    desktop.run(["bash", "-c", script], timeout=70)
    desktop.run(argv, timeout=70)


def test_the_daemon_itself_is_bound(vps: Machine) -> None:
    inside = ["sh", "-c", 'echo $$ > /sys/fs/cgroup$0/cgroup.procs && exec "$@"']
    group = vps.out("systemctl show -P ControlGroup peerd")
    bind = ["python3", "-c", "import socket, sys; socket.create_server(('127.0.0.1', int(sys.argv[1])))"]
    vps.run([*inside, group, *bind, "700"])
    # Debian 12's systemd was built without what SocketBindDeny= needs, and ignores it.
    if "+BPF_FRAMEWORK" in vps.out("systemctl --version"):
        for port in ("8123", "80"):
            assert b"PermissionError" in vps.run([*inside, group, *bind, port], check=False).stderr
    device = vps.run([*inside, group, "sh", "-c", "exec 3<>/dev/net/tun"], check=False)
    assert device.returncode != 0
    assert b"not permitted" in device.stderr


def test_what_systemd_thinks_of_it_is_what_the_manual_says(vps: Machine) -> None:
    said = vps.out("systemd-analyze security --no-pager peerd.service").splitlines()[-1]
    assert "Overall exposure level for peerd.service: 9." in said
    assert "UNSAFE" in said
