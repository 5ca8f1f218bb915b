"""The cables and the configuration that join a lab's machines: an underlay of veth pairs, and WireGuard over it."""

from __future__ import annotations

from pathlib import Path

from .host import NETNS, host

HUB = "10.0.0.1"
PORT = 51820
UNDERLAY = "underlay"


def underlay_address(index: int, address: str | None) -> str:
    """The address on eth0: it ends as the VPN address does, or is a high one for the index-th machine without."""
    return f"192.168.77.{address.rsplit('.', 1)[1] if address else 200 + index}"


def lay_bridge(namespace: str) -> None:
    """Make the namespace with the bridge that is the internet of a lab."""
    host("ip", "netns", "add", namespace)
    host("ip", "-n", namespace, "link", "add", "br0", "type", "bridge")
    host("ip", "-n", namespace, "link", "set", "br0", "up")


def lay_cable(bridge: str, namespace: str, name: str, address: str) -> None:
    """Make a machine's namespace and join its eth0 to the bridge, where the other end is called as the machine."""
    host("ip", "netns", "add", namespace)
    host("ip", "link", "add", name, "netns", bridge, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    host("ip", "-n", bridge, "-batch", "-", input=f"link set {name} master br0\nlink set {name} up\n".encode())
    inside = f"link set lo up\naddress add {address}/24 dev eth0\nlink set eth0 up\n"
    host("ip", "-n", namespace, "-batch", "-", input=inside.encode())


def forward(namespace: str) -> None:
    """Let a machine route. From outside: nspawn keeps /proc/sys read-only in a namespace that it did not make."""
    host("nsenter", f"--net={NETNS / namespace}", "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")


def write_wireguard(roots: dict[str, Path], hub_underlay: str) -> None:
    """Configure and enable wg-quick@wg0 on the disks of machines (VPN address -> root), as a hub and its spokes.

    Only the hub knows every key; a spoke knows the hub's, through which it reaches the others.
    """
    private = {address: host("wg", "genkey").decode().strip() for address in roots}
    public = {address: host("wg", "pubkey", input=key.encode()).decode().strip() for address, key in private.items()}
    for address, root in roots.items():
        lines = ["[Interface]", f"PrivateKey = {private[address]}", f"Address = {address}/24"]
        if address == HUB:
            lines.append(f"ListenPort = {PORT}")
            for peer in roots:
                if peer != HUB:
                    lines += ["", "[Peer]", f"PublicKey = {public[peer]}", f"AllowedIPs = {peer}/32"]
        elif HUB in roots:
            lines += ["", "[Peer]", f"PublicKey = {public[HUB]}", "AllowedIPs = 10.0.0.0/24"]
            lines += [f"Endpoint = {hub_underlay}:{PORT}", "PersistentKeepalive = 25"]
        config = root / "etc/wireguard/wg0.conf"
        config.touch(0o600)
        config.write_text("\n".join([*lines, ""]))
        wants = root / "etc/systemd/system/multi-user.target.wants/wg-quick@wg0.service"
        wants.parent.mkdir(exist_ok=True)
        wants.symlink_to("/lib/systemd/system/wg-quick@.service")
