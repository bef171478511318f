"""Say what is installed, missing, and how to get it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True)
class Finding:
    """One thing that md uses: whether it is there, and the line that gets it."""

    what: str
    state: str
    found: str
    fix: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON (md.doctor/1).")] = False,
) -> None:
    """Say what md has to work with: versions, engines, devices, codecs, Docker; and the line that gets what is missing.

    Exits 1 where something that md can't do without is missing.
    """
    import json
    from dataclasses import asdict

    from mdcli.errors import AnswerNo

    findings = [*_core(), *_engines(), *_devices(), *_docker(), *_plugins()]
    if as_json:
        print(json.dumps({"schema": "md.doctor/1", "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        for finding in findings:
            print(f"{finding.what:<24} {finding.state:<9} {finding.found}")
            if finding.fix:
                print(f"{'':<24} to get it: {finding.fix}")
    missing = [f.what for f in findings if f.state == "MISSING"]
    if missing:
        raise AnswerNo("missing", f"md can't do without {', '.join(missing)}")


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _core() -> list[Finding]:
    import platform

    found = [
        Finding("md", "ok", _version("mdcli") or "?"),
        Finding("python", "ok", platform.python_version()),
        Finding("system", "ok", f"{platform.system()} {platform.machine()}"),
    ]
    for name in ("numpy", "pydicom", "highdicom", "SimpleITK", "nibabel", "pylibjpeg-openjpeg", "pyjpegls"):
        version = _version(name)
        found.append(
            Finding(name, "ok" if version else "MISSING", version or "", "" if version else f"pip install {name}")
        )
    return found


def _engines() -> list[Finding]:
    onnx = _version("onnxruntime") or _version("onnxruntime-gpu")
    return [Finding("onnxruntime", "ok" if onnx else "MISSING", onnx or "", "" if onnx else "pip install 'mdcli[cpu]'")]


def _devices() -> list[Finding]:
    import os
    import shutil
    import subprocess

    found = [Finding("cpu", "ok", f"{os.cpu_count()} cores")]
    try:
        import onnxruntime

        names = [p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers()]
        found.append(
            Finding("onnxruntime providers", "listed", ", ".join(names) + " (a listed one may still not start)")
        )
    except Exception as error:
        found.append(Finding("onnxruntime providers", "not there", f"{type(error).__name__}: {error}"))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        found.append(
            Finding("gpu", "not there", "no nvidia-smi", "install the NVIDIA driver, then pip install 'mdcli[gpu]'")
        )
        return found
    asked = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
        found += [Finding(f"gpu {number}", "ok", line.strip()) for number, line in enumerate(lines)]
    except (OSError, subprocess.SubprocessError) as error:
        found.append(Finding("gpu", "not there", f"nvidia-smi failed: {type(error).__name__}"))
    return found


def _docker() -> list[Finding]:
    import shutil
    import subprocess

    tool = shutil.which("docker") or shutil.which("podman")
    if tool is None:
        return [Finding("docker", "not there", "no docker or podman", "apt-get install podman")]
    try:
        done = subprocess.run([tool, "info"], capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return [Finding("docker", "not there", f"{tool}: {type(error).__name__}")]
    if done.returncode:
        return [Finding("docker", "not there", "the client is there, no engine answers", "systemctl start docker")]
    return [Finding("docker", "ok", tool)]


def _plugins() -> list[Finding]:
    from mdcli import registry
    from mdcli.errors import MdError

    found = []
    for plugin in registry.plugins():
        try:
            plugin.load()
            found.append(Finding(f"plugin {plugin.word}", "ok", f"{plugin.distribution} {plugin.version}"))
        except MdError as error:
            found.append(Finding(f"plugin {plugin.word}", "broken", error.message, error.hint or ""))
    return found
