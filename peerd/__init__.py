"""peerd: run commands on the machines of a WireGuard VPN, through a daemon on each."""

__version__ = "0.1.0"
