"""A bad stretch of the internet: passes UDP on to one address and back, late, and not all of it.

It stands in for tc-netem(8), which needs a module that the host may not have. Run as a program, in a namespace:
its arguments are where to listen, where to pass it on (both ADDRESS:PORT), the share that is lost and the seconds that
the rest takes, in each direction.
"""

from __future__ import annotations

import asyncio
import random
import sys

Address = tuple[str, int]


class _End(asyncio.DatagramProtocol):
    """One side; what comes in goes to the other side's last known partner."""

    def __init__(self, partner: Address | None, loss: float, delay: float) -> None:
        self.partner = partner
        self.other: _End | None = None
        self._fixed = partner is not None
        self._loss = loss
        self._delay = delay
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if not self._fixed:
            self.partner = addr
        if self.other and random.random() >= self._loss:
            asyncio.get_running_loop().call_later(self._delay, self.other.pass_on, data)

    def pass_on(self, data: bytes) -> None:
        """Send to the partner."""
        if self._transport and self.partner:
            self._transport.sendto(data, self.partner)


def _address(text: str) -> Address:
    host, _, port = text.partition(":")
    return host, int(port)


async def main(listen: str, target: str, loss: str, delay: str) -> None:
    """Pass on until the process is ended."""
    random.seed(1)
    near, far = _End(None, float(loss), float(delay)), _End(_address(target), float(loss), float(delay))
    near.other, far.other = far, near
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: near, local_addr=_address(listen))
    await loop.create_datagram_endpoint(lambda: far, local_addr=("0.0.0.0", 0))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
