"""A bad stretch of the internet: passes UDP on between two addresses, one way late and not all of it.

It stands in for tc-netem(8) on one end's interface, which needs a module that the host may not have. Run as a program,
in a namespace: its arguments are two pairs of where to listen for one end and where that end is (ADDRESS:PORT each),
the share that is lost of what the first end sends, and the seconds that the rest of it takes.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys

_LONGEST = 65536


class _Side:
    """One end, and the socket that stands for the other one in its eyes."""

    def __init__(self, listen: str, partner: str) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(_address(listen))
        self.partner = _address(partner)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    return host, int(port)


async def _pass_on(source: _Side, target: _Side, loss: float, delay: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        data = await loop.sock_recv(source.socket, _LONGEST)
        if random.random() >= loss:
            loop.call_later(delay, target.socket.sendto, data, target.partner)


async def main(near: str, near_end: str, far: str, far_end: str, loss: str, delay: str) -> None:
    """Pass on until the process is ended."""
    random.seed(1)
    one, other = _Side(near, near_end), _Side(far, far_end)
    print("ready", flush=True)
    await asyncio.gather(_pass_on(one, other, float(loss), float(delay)), _pass_on(other, one, 0.0, 0.0))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
