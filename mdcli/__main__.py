"""The entry point of `md` and `mdcli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    if sys.argv[1:] == ["--version"]:
        # Before anything is imported: scripts and probes ask this often.
        from mdcli import __version__

        print(f"md {__version__}")
        return
    try:
        from mdcli.cli.main import run
    except KeyboardInterrupt:
        # Ctrl-C while modules are loaded: no traceback, the status of any other moment.
        sys.exit(130)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
