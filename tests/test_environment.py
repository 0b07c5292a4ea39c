"""Which build of torch `make` asks for, and in which order, on machines that we do not have."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PYTHON = Path("/somewhere/bin/python")
VERSION = "2.13.0"


@pytest.fixture
def environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, as on Linux."""
    spec = importlib.util.spec_from_file_location("environment", project / "tools" / "environment.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(module, "torch_version", lambda: VERSION)
    return module


def asked(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, *, gpu: bool, found: set[str], index: str = ""
) -> list[str]:
    """What is asked for torch, in order, when the ways in `found` succeed."""
    questions: list[str] = []

    def run(*command: str | Path) -> None:
        questions.append(" ".join(map(str, command[3:])).split(" --constraint")[0])

    def works(*command: str | Path, shown: bool = False) -> bool:
        words = list(map(str, command))
        if "-c" in words:
            return False
        way = "uv" if words[0].endswith("uv") else "fetch uv" if "uv>=0.7" in words else "pip"
        questions.append(way)
        return way in found

    monkeypatch.setattr(module, "has_gpu", lambda: gpu)
    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "works", works)
    module.choose_torch(PYTHON, index)
    return questions


def test_a_gpu_needs_no_help(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(environment, monkeypatch, gpu=True, found={"pip"}) == []


def test_without_a_gpu_pip_is_asked_for_the_cpu_build(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert asked(environment, monkeypatch, gpu=False, found={"pip"}) == ["pip"]
    assert f"torch=={VERSION}+cpu" in capfd.readouterr().out


def test_uv_is_asked_next(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(environment, monkeypatch, gpu=False, found={"fetch uv", "uv"}) == ["pip", "fetch uv", "uv"]


@pytest.mark.parametrize("found", [set(), {"fetch uv"}])
def test_nobody_has_it_and_the_remedy_is_named(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], found: set[str]
) -> None:
    asked(environment, monkeypatch, gpu=False, found=found)
    assert "TORCH_INDEX=ADDRESS" in capfd.readouterr().err


def test_an_index_decides_on_every_machine(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu in (True, False):
        questions = asked(environment, monkeypatch, gpu=gpu, found=set(), index="file:///wheels")
        assert questions == [f"install torch=={VERSION} --extra-index-url file:///wheels"]


def test_the_version_comes_from_the_constraints(project: Path, environment: ModuleType) -> None:
    assert f"torch=={VERSION}" in (project / "constraints.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("answer", "code", "gpu"), [("GPU 0: a card", 0, True), ("no devices", 0, False), ("GPU", 9, False)]
)
def test_a_gpu_is_what_the_driver_lists(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, code: int, gpu: bool
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{answer}'\nexit {code}\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.has_gpu() is gpu
