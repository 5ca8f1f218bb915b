"""The program peerd: it serves, or looks at its configuration, for which it has to load very little."""

from __future__ import annotations

import sys

from peerd import configfiles


def main() -> int:
    """Run it; the exit status is 2 for arguments that it does not have."""
    if sys.argv[1:] == ["--check"]:
        return configfiles.check()
    if sys.argv[1:]:
        sys.stderr.write(
            "peerd is started by systemd (systemctl start peerd), and looks at its configuration with --check. "
            "Its commands: d help\n"
        )
        return 2
    from peerd import daemon

    return daemon.main()


if __name__ == "__main__":
    raise SystemExit(main())
