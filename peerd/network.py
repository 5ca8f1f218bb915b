"""What the kernel and WireGuard know about addresses and interfaces."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from peerd import programs

_SIOCGIFADDR = 0x8915
"""netdevice(7): the address of an interface."""
_SIOCGIFHWADDR = 0x8927
"""netdevice(7): the hardware address of an interface."""
_HWADDR = struct.Struct("@H6s")
_ARPHRD_ETHER = 1
_IFNAMSIZ = 16
_IFREQ = struct.Struct("16s2x2x4s16x")
_IP_PKTOPTIONS = 9
"""linux/in.h: the control messages of the packet that opened a TCP connection, where IP_PKTINFO (ip(7)) is on."""
_CMSG_HEADER = struct.Struct("@Lii")
_IP_PKTINFO = 8
_PKTINFO = struct.Struct("@i")
# rtnetlink(7): links, IPv4 addresses and IPv4 routes.
_RTMGRP = 0x1 | 0x10 | 0x40
_WG_TIMEOUT = 5.0
_ADDRESS_BITS = 32
_GONE_AFTER = 15_000
"""Milliseconds after which a machine that takes nothing is taken for gone."""
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_AFTER),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


_SO_SNDBUFFORCE = 32
"""socket(7): the size of the send buffer, whatever the limit for others is."""
RESERVED_BELOW = 1024
"""Ports below this can be bound by root alone (ip(7), ip_unprivileged_port_start)."""
_LOCAL_PORTS = range(600, RESERVED_BELOW)


async def dial(address: str, port: int, interface: str) -> socket.socket:
    """A TCP connection to an address, through an interface and from a reserved port where this process may bind one.

    The other end takes a machine's VPN address for a peer; the port tells it that root speaks there and not just any
    user of that machine. This end does the same, and where the VPN is down, anybody nearby may have that address.

    :raises OSError: when the connection cannot be made
    """
    loop = asyncio.get_running_loop()
    for local in random.sample(_LOCAL_PORTS, len(_LOCAL_PORTS)):
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bind_to(connection, interface)
            with contextlib.suppress(PermissionError):
                connection.bind(("", local))
            await loop.sock_connect(connection, (address, port))
        except OSError as error:
            connection.close()
            # In use by a listener, or by another connection to the same peer.
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise OSError(f"{len(_LOCAL_PORTS)} connections to it from here already, which is all that there are ports for")


def bind_to(connection: socket.socket, interface: str) -> None:
    """Have a connection go through this interface and no other, whatever the routes are.

    :raises OSError: where there is none
    """
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise OSError(f"there is no interface {interface}") from None


def is_bound_to(connection: socket.socket, interface: str) -> bool:
    """Whether a connection was bound to this interface, and not to one that had its name before."""
    try:
        name = connection.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _IFNAMSIZ)
    except OSError:
        return False
    return name.rstrip(b"\0") == interface.encode()


def tune(connection: socket.socket) -> None:
    """Make a TCP connection notice within some 15 s that the other machine is gone, and send small frames at once."""
    for level, option, value in _KEEPALIVE:
        connection.setsockopt(level, option, value)


@contextlib.contextmanager
def pausable(connection: socket.socket) -> Iterator[None]:
    """Let the other end take nothing for as long as it likes, if only its kernel answers.

    A machine that is gone is then noticed in time only where nothing is on its way to it; else after tcp_retries2 of
    tcp(7), some 15 minutes.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_AFTER)


def make_room(connection: socket.socket, size: int) -> None:
    """Let so many bytes be sent at once, whatever the system's limit for others is; not without the right to that."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)


def interface_address(interface: str) -> str | None:
    """The IPv4 address of an interface, or None where it does not exist or has none."""
    request = _IFREQ.pack(interface.encode(), b"")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(_IFREQ.unpack(answer)[1])


def ingress_interface(connection: socket.socket) -> int | None:
    """The index of the interface through which an accepted TCP connection came in.

    :returns: None where the listener did not ask for it (PassPacketInfo= of systemd.socket(5))
    """
    try:
        data = connection.getsockopt(socket.IPPROTO_IP, _IP_PKTOPTIONS, 512)
    except OSError:
        return None
    offset = 0
    while offset + _CMSG_HEADER.size + _PKTINFO.size <= len(data):
        length, level, kind = _CMSG_HEADER.unpack_from(data, offset)
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            return int(_PKTINFO.unpack_from(data, offset + _CMSG_HEADER.size)[0])
        offset += max(_CMSG_HEADER.size, (length + 7) & ~7)
    return None


def came_through(connection: socket.socket, interface: str) -> bool:
    """Whether an accepted connection came in through this interface."""
    try:
        return ingress_interface(connection) == socket.if_nametoindex(interface)
    except OSError:
        return False


def primary_mac_address() -> str:
    """The MAC address of the interface of the default route, else of the first one that has any; "" without one."""
    names = [name for _, name in socket.if_nameindex()]
    with contextlib.suppress(OSError):
        # proc(5): the interface is the first column, the destination the second, in hexadecimal.
        routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
        names = [route[0] for route in routes if route[1] == "00000000"] + names
    return next((mac for name in names if (mac := _mac_address(name))), "")


def _mac_address(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, _SIOCGIFHWADDR, _IFREQ.pack(interface.encode(), b""))
        except OSError:
            return ""
    family, mac = _HWADDR.unpack_from(answer, 16)
    return mac.hex(":") if family == _ARPHRD_ETHER else ""


def hostname() -> str:
    """The name of this machine, without a domain."""
    return socket.gethostname().split(".")[0]


@functools.cache
def boot_id() -> str:
    """What is different after each boot of this machine (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class KeyTable:
    """Which WireGuard public key an address belongs to: the one whose allowed IPs hold it most specifically.

    The leader's cryptokey routing is what vouches for an address.

    :param dump: the output of ``wg show INTERFACE dump`` (wg(8))
    """

    def __init__(self, dump: str) -> None:
        self._by_length: dict[int, dict[int, str]] = {}
        for line in dump.splitlines()[1:]:
            columns = line.split("\t")
            for allowed in columns[3].split(",") if len(columns) > 3 else ():
                address, _, length = allowed.partition("/")
                # Of the two families only this one has our peers.
                with contextlib.suppress(OSError, ValueError):
                    number, bits = _number(address), int(length)
                    if 0 <= bits <= _ADDRESS_BITS:
                        self._by_length.setdefault(bits, {})[number >> (_ADDRESS_BITS - bits)] = columns[0]
        self._lengths = sorted(self._by_length, reverse=True)

    def of(self, address: str) -> str:
        """The key behind an address, or ""."""
        number = _number(address)
        routes = (self._by_length[bits].get(number >> (_ADDRESS_BITS - bits), "") for bits in self._lengths)
        return next(filter(None, routes), "")


def _number(address: str) -> int:
    return int.from_bytes(socket.inet_pton(socket.AF_INET, address))


async def public_keys(interface: str) -> KeyTable:
    """The keys of the peers of an interface; an empty table where they are not known."""
    try:
        async with asyncio.timeout(_WG_TIMEOUT):
            dump = await programs.output("wg", "show", interface, "dump")
    except OSError:
        return KeyTable("")
    return KeyTable(dump.decode("ascii", "replace"))


class NetworkWatch:
    """Calls back whenever a link, an address or a route of this machine changed (rtnetlink(7))."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.bind((0, _RTMGRP))
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def _read(self) -> None:
        # What changed does not matter, and an overrun (ENOBUFS) means a change as well.
        with contextlib.suppress(OSError):
            while self._socket.recv(65536):
                pass
        self._changed()

    def close(self) -> None:
        """Stop watching."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


def is_own_address(address: str) -> bool:
    """Whether an address is one of this machine's own: only those can be bound (ip(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
