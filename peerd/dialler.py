"""Connections to other machines: all of them through the VPN's interface, whatever becomes of that."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakSet

from peerd import connection, network
from peerd.config import Config
from peerd.connection import Connection


class Dialler:
    """Makes connections, as the settings in force have it.

    :param config: gives these settings
    """

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self._made: WeakSet[Connection] = WeakSet()

    async def connect(self, address: str) -> Connection:
        """A connection to another machine, greeted.

        :raises OSError: when it is not reachable, or there is no such interface
        :raises PeerdError: when it refuses to talk
        """
        config = self._config()
        link = await connection.connect(address, config.port, config.vpn_interface, config.connect_timeout)
        self._made.add(link)
        return link

    def renew(self) -> None:
        """End the connections through what is not the VPN's interface any more, once there is one to make others.

        The kernel keeps them for an interface that was taken away, and does not take another with its name for it.
        """
        interface = self._config().vpn_interface
        if network.interface_address(interface) is None:
            return
        for link in list(self._made):
            if link.usable and not network.is_bound_to(link.socket, interface):
                link.abort()
