"""Time how long `md` takes to say anything, and how large an installation is. usage: bench_startup.py [--repeat 20] [--install]

The peer is Python itself: what md adds to it. With --install the project is installed into fresh virtual environments and weighed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MD = str(Path(sys.executable).parent / "md")
CALLS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "md --version": [MD, "--version"],
    "md --help": [MD, "--help"],
    "md load-volume --help": [MD, "load-volume", "--help"],
    "md path WS volume": [MD, "path", "ws", "volume"],
}


def main() -> None:
    """Measure each call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--install", action="store_true")
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in CALLS}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "ws").mkdir()
        (Path(scratch) / "ws" / "volume.nii").touch()
        for turn in range(args.repeat + 1):
            for name, command in CALLS.items():
                started = time.perf_counter()
                subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
                if turn:
                    times[name].append(1000 * (time.perf_counter() - started))
    print(f"{'call':28} {'median ms':>9} {'least ms':>9}   ({args.repeat} runs, in turn)")
    for name, found in times.items():
        print(f"{name:28} {statistics.median(found):9.0f} {min(found):9.0f}")
    for extra in ("", "[cpu]") if args.install else ():
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", scratch], check=True)
            target = [sys.executable, "-m", "pip", "--quiet", "--python", f"{scratch}/bin/python", "install"]
            subprocess.run([*target, f"{ROOT}{extra}"], check=True)
            size = sum(p.stat().st_blocks * 512 for p in Path(scratch).rglob("*") if p.is_file() and not p.is_symlink())
            print(f"installed mdcli{extra}: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
