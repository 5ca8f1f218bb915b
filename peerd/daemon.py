"""The daemon: puts the parts together, and speaks with systemd (sd_listen_fds(3), sd_notify(3))."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sdnotify
from systemd import daemon as systemd

from peerd import __version__, configfiles
from peerd.apphost import AppHost
from peerd.bus import Bus
from peerd.config import Config, ConfigError
from peerd.connection import Connection
from peerd.errors import PeerdError
from peerd.executor import Executor
from peerd.fronts import Front
from peerd.history import History
from peerd.journal import Event, log, report
from peerd.memory import heap
from peerd.node import Node
from peerd.registry import Registry
from peerd.scopes import ScopeManager
from peerd.service import Service
from peerd.sleep import SleepWatch
from peerd.storage import Storage
from peerd.systemd1 import Systemd
from peerd.tcpfront import TcpFront
from peerd.units import Units
from peerd.unixfront import UnixFront
from peerd.validate import printable

_STATUS_DELAY = 0.5
_MAX_SHOWN = 200
_BACKLOG = 1024
"""Connections that wait, the same as in the socket units: a server calls listen(2) again."""
_USEC = 1_000_000
_STATE = "/var/lib/peerd"


class Daemon:
    """One daemon: made from a configuration, runs until it is told to stop."""

    def __init__(
        self,
        settings: Config,
        listeners: Mapping[str, Sequence[socket.socket]],
        kept: Mapping[str, Sequence[int]],
        state: Path,
    ) -> None:
        self._settings = settings
        self._not_taken = ""
        self._listeners = listeners
        self._kept = kept
        self._notifier = sdnotify.SystemdNotifier()
        self._stopping = asyncio.Event()
        self._status_due: asyncio.TimerHandle | None = None
        self._shown = ""
        self._registry = Registry(state / "peerd.db")
        self._history = History(state / "jobs.db")
        self._systemd = Systemd()

        def current() -> Config:
            return self._settings

        self._node = Node(self._registry, current, self._changed)
        self._executor = Executor(
            ScopeManager(self._systemd),
            self._history,
            Storage(state / "jobs", current),
            current,
            lambda: self._node.peer_id,
            self._changed,
        )
        apps = AppHost(self._registry, Units(self._systemd), lambda: self._node.peer_id)
        service = Service(self._node, self._executor, self._registry, self._history, apps, current)
        self._fronts: dict[str, Front] = {
            "unix": UnixFront(self._node, service, current),
            "tcp": TcpFront(self._node, self._executor, apps, current),
        }
        self._bus = Bus(self._node, service, self._executor, current)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.set_exception_handler(_report_stray)
        self._executor.start(self._kept)
        self._node.start()
        self._bus.start()
        sleep = SleepWatch(self._systemd.connect, self._node.resumed)
        servers = [
            await _serve(listener, partial(Connection, self._fronts[name].accept))
            for name, sockets in self._listeners.items()
            for listener in sockets
        ]
        # What is loaded by now stays; to look through it again and again would only hold up commands.
        gc.collect()
        gc.freeze()
        heap.settle()
        watchdog = asyncio.create_task(self._feed_watchdog())
        log(Event.STARTED, f"peerd {__version__} started, {self._status()}")
        self._show_status("READY=1\n")
        await self._stopping.wait()
        self._notifier.notify("STOPPING=1\nSTATUS=Stopping")
        for server in servers:
            server.close()
        await self._bus.close()
        for front in self._fronts.values():
            await front.close()
        await self._executor.close()
        await self._node.close()
        await sleep.close()
        watchdog.cancel()
        self._systemd.close()
        self._history.close()
        self._registry.close()

    def _status(self) -> str:
        node, running = self._node, self._executor.running
        if node.hub:
            part = f"leader {node.peer_id}, {node.hub.workers} of {max(len(node.book) - 1, 0)} workers connected"
        elif node.link:
            state = "connected to" if node.link.connected else "not connected to"
            part = f"worker {node.peer_id}, {state} leader {node.link.address}, {len(node.book)} peers known"
        else:
            part = f"{node.peer_id} works alone, no role set"
        return f"{part}, {running} {'command' if running == 1 else 'commands'} running{self._not_taken}"

    def _changed(self) -> None:
        self._bus.changed()
        # Every notification wakes PID 1; many changes at once are one.
        if self._status_due is None:
            self._status_due = asyncio.get_running_loop().call_later(_STATUS_DELAY, self._show_changed)

    def _show_changed(self) -> None:
        self._status_due = None
        if not self._stopping.is_set() and self._status() != self._shown:
            self._show_status()

    def _show_status(self, state: str = "") -> None:
        self._shown = self._status()
        self._notifier.notify(f"{state}STATUS={self._shown}")

    def _reload(self) -> None:
        # MONOTONIC_USEC= is what Type=notify-reload waits for; with Type=notify it does no harm (sd_notify(3)).
        self._notifier.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._settings, warnings = configfiles.read()
        except ConfigError as error:
            log(Event.CONFIG_INVALID, f"Configuration not reloaded, the old one stays in force: {error}")
            self._not_taken = f"; configuration not reloaded: {printable(str(error), _MAX_SHOWN)}"
        else:
            self._not_taken = ""
            _warn(warnings)
            self._node.reloaded()
        self._show_status("READY=1\n")

    async def _feed_watchdog(self) -> None:
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / _USEC / 2
        while interval:
            self._notifier.notify("WATCHDOG=1")
            await asyncio.sleep(interval)


async def _serve(listener: socket.socket, protocol: Callable[[], asyncio.BaseProtocol]) -> asyncio.Server:
    """Accept connections, one a turn of the loop: by its backlog asyncio counts its attempts, also vain ones."""
    # For a unix socket, too: create_unix_server of Python 3.13 would remove its file, which is systemd's.
    server = await asyncio.get_running_loop().create_server(protocol, sock=listener, backlog=1)
    listener.listen(_BACKLOG)
    return server


def _report_stray(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    report(context.get("exception") or RuntimeError(context["message"]), context["message"])


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        log(Event.CONFIG_WARNING, warning)


def _given() -> tuple[dict[str, list[socket.socket]], dict[str, list[int]]]:
    """What systemd gave this process: the listening sockets by front, and the descriptors that it kept by name.

    A listener is told by what it is: a drop-in, or another socket unit, may name it as it likes.
    """
    listeners: dict[str, list[socket.socket]] = {"unix": [], "tcp": []}
    kept: dict[str, list[int]] = {}
    for fd, name in systemd.listen_fds_with_names(unset_environment=True).items():
        if systemd.is_socket(fd, type=socket.SOCK_STREAM, listening=1):
            listener = socket.socket(fileno=fd)
            listener.setblocking(False)
            listeners["unix" if listener.family == socket.AF_UNIX else "tcp"].append(listener)
        else:
            kept.setdefault(name, []).append(fd)
    return listeners, kept


def _state() -> Path:
    """The directory of the databases. A drop-in that names another adds it, and either may come first."""
    directories = os.environ.get("STATE_DIRECTORY", _STATE).split(":")
    return Path(_STATE if _STATE in directories else directories[0])


def main() -> int:
    """Run the daemon; the exit status is 0 after a stop, 78 for a bad configuration and 1 for a bad state directory."""
    os.umask(0o077)
    try:
        settings, warnings = configfiles.read()
    except ConfigError as error:
        log(Event.CONFIG_INVALID, f"Configuration cannot be used: {error}")
        sys.stderr.write(f"peerd: {error}\n")
        return configfiles.EX_CONFIG
    _warn(warnings)
    try:
        asyncio.run(Daemon(settings, *_given(), _state()).run())
    except PeerdError as error:
        log(Event.INTERNAL_ERROR, error.sentence)
        return 1
    return 0
