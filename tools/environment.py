"""Make or refresh the virtual environment that `make` works in, with nothing but Python's standard library.

Knows: how a bare environment gets pip, which build of torch this machine wants and where to ask for it.
Does not know: arvid, and the address of any package index: those are pip's configuration or --torch-index.

Usage: python3 tools/environment.py DIRECTORY [--torch-index ADDRESS]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST = (3, 10)
CPU_HINT = """\
note: this machine has no NVIDIA GPU, but no index that pip knows offers the CPU build torch=={version}+cpu.
note: installing the ordinary build instead: it runs on the CPU too, but may bring several GB of CUDA libraries.
note: for the small one, stop this and run `make clean-venv`, then `make demo TORCH_INDEX=ADDRESS`, where ADDRESS is the
note: index that the install page of PyTorch shows for Linux, pip and CPU."""


def main() -> int:
    """Create the environment, choose torch, install arvid for development. Returns the exit code."""
    parser = argparse.ArgumentParser(description="make or refresh the virtual environment of a checkout")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--torch-index", default="", help="package index that holds the wanted build of torch")
    arguments = parser.parse_args()
    if sys.version_info < OLDEST:
        found = ".".join(map(str, sys.version_info[:3]))
        return fail(f"Python {found} found, 3.10 or later needed; name another one with `make PYTHON=python3.12`")
    try:
        python = bare_environment(arguments.directory)
        choose_torch(python, arguments.torch_index)
        pip(python, "install", "--editable", f"{ROOT}[dev,serve]", "--constraint", str(CONSTRAINTS))
    except subprocess.CalledProcessError as error:
        return fail(f"`{' '.join(map(str, error.cmd))}` ended with exit code {error.returncode}, see its message above")
    return 0


def fail(message: str) -> int:
    """Print one line to standard error; returns exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    return 2


def bare_environment(directory: Path) -> Path:
    """The Python of an environment that has pip; makes it when it is not there.

    Raises subprocess.CalledProcessError when the environment cannot be made.
    """
    python = directory / "bin" / "python"
    if not works(python, "-c", "import pip"):
        ensure_ensurepip()
        run(Path(sys.executable), "-m", "venv", "--clear", directory)
    return python


def ensure_ensurepip() -> None:
    """Debian takes ensurepip out of its python3 and ships it as python3-venv: ask apt for it where we may."""
    if works(Path(sys.executable), "-c", "import ensurepip"):
        return
    apt, sudo = shutil.which("apt-get"), shutil.which("sudo")
    ask = [] if os.geteuid() == 0 else [sudo, "-n"] if sudo else None
    if apt is None or ask is None:
        raise SystemExit(fail("this python3 has no ensurepip; on Debian: apt-get install python3-venv"))
    print("this python3 has no ensurepip: installing the package python3-venv", flush=True)
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    run(*ask, apt, "update", "--quiet")
    run(*ask, apt, "install", "--yes", "--quiet", package)


def choose_torch(python: Path, index: str) -> None:
    """Install torch before anything else asks for it: the CPU build where there is no NVIDIA GPU.

    With an index the build found there wins, whatever the machine. A machine with a GPU, and every system other than
    Linux, needs no help: the ordinary wheel is the right one.
    """
    version = torch_version()
    if works(
        python, "-c", f"from importlib.metadata import version as v; assert v('torch').split('+')[0] == '{version}'"
    ):
        return
    if index:
        pip(python, "install", f"torch=={version}", "--extra-index-url", index, "--constraint", str(CONSTRAINTS))
    elif sys.platform == "linux" and not has_gpu():
        print(f"no NVIDIA GPU found: looking for the CPU build torch=={version}+cpu", flush=True)
        if not (cpu_torch_by_pip(python, version) or cpu_torch_by_uv(python, version)):
            print(CPU_HINT.format(version=version), file=sys.stderr, flush=True)


def cpu_torch_by_pip(python: Path, version: str) -> bool:
    """Ask the indexes and folders that pip is configured with. True when torch was installed."""
    wanted = (f"torch=={version}+cpu", "--constraint", CONSTRAINTS)
    return works(python, "-m", "pip", "install", *wanted, shown=True)


def cpu_torch_by_uv(python: Path, version: str) -> bool:
    """Ask uv, which knows by itself where the CPU build is published. True when torch was installed.

    uv lives in a folder of its own that is gone afterwards: the environment holds what pyproject.toml asks for.
    """
    print("pip knows no such build: asking uv, which knows where PyTorch publishes it", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if not works(python, "-m", "pip", "install", "--quiet", "--target", folder, "uv>=0.7", shown=True):
            return False
        uv = Path(folder) / "bin" / "uv"
        wanted = (f"torch=={version}", "--constraint", CONSTRAINTS)
        return works(uv, "pip", "install", "--python", python, "--torch-backend", "cpu", *wanted, shown=True)


def torch_version() -> str:
    """The version of torch that constraints.txt names."""
    found = re.search(r"^torch==([0-9.]+)", CONSTRAINTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if found is None:
        raise SystemExit(fail("constraints.txt names no version of torch; add a line such as torch==2.13.0"))
    return found.group(1)


def has_gpu() -> bool:
    """Whether the NVIDIA driver of this machine lists a device."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def pip(python: Path, *arguments: str) -> None:
    """Run the environment's pip and stop at a failure."""
    run(python, "-m", "pip", *arguments)


def run(*command: str | Path) -> None:
    """Run a command and stop at a failure."""
    subprocess.run([str(part) for part in command], check=True)


def works(*command: str | Path, shown: bool = False) -> bool:
    """Run a command that may fail. True when it ended with exit code 0."""
    if not Path(command[0]).exists():
        return False
    stream = None if shown else subprocess.DEVNULL
    return subprocess.run([str(part) for part in command], check=False, stdout=stream, stderr=stream).returncode == 0


if __name__ == "__main__":
    raise SystemExit(main())
