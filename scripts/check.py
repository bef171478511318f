"""Run all checks: lint, format, types, tests, the demo with its gold. usage: check.py [quick]

`quick` leaves the tests that are marked slow out. Ends with the status of the first check that failed, after running them all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def main() -> int:
    quick = sys.argv[1:] == ["quick"]
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    python = sys.executable
    with tempfile.TemporaryDirectory() as scratch:
        checks = {
            "lint": [python, "-m", "ruff", "check", "."],
            "format": [python, "-m", "ruff", "format", "--check", "."],
            "types": [python, "-m", "mypy"],
            "demo": [str(BIN / "md"), "demo", str(Path(scratch) / "demo")],
            "plugins": [python, "-m", "pytest", "-rs", *(str(tests) for tests in sorted(ROOT.glob("plugins/*/tests")))],
            "tests": [
                python,
                "-m",
                "pytest",
                "-n",
                "2",
                "--dist",
                "worksteal",
                "-rs",
                *(["-m", "not slow"] if quick else []),
            ],
        }
        failed = {}
        for name, command in checks.items():
            started = time.monotonic()
            print(f"== {name}: {' '.join(command)}", flush=True)
            status = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode
            print(
                f"== {name}: {'ok' if status == 0 else f'FAILED ({status})'}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
            if status:
                failed[name] = status
    if failed:
        print(f"failed: {', '.join(failed)}")
    return next(iter(failed.values()), 0)


if __name__ == "__main__":
    sys.exit(main())
