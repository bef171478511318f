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
    from mdcli.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
