"""Who may import whom: the table of docs/architecture.md, checked against every import of every file."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ARROWS: dict[str, frozenset[str]] = {
    "types": frozenset(),
    "spec": frozenset(),
    "layers": frozenset({"types"}),
    "caches": frozenset({"types"}),
    "samplers": frozenset({"types"}),
    "rewards": frozenset({"types"}),
    "worlds": frozenset({"types"}),
    "video": frozenset({"types"}),
    "models": frozenset({"types", "layers"}),
    "rollout": frozenset({"types", "caches", "samplers"}),
    "evals": frozenset({"types", "rewards", "worlds", "video"}),
    "train": frozenset({"types", "samplers", "caches", "rollout", "rewards", "worlds"}),
    "request": frozenset({"rollout"}),
    "pipeline": frozenset(
        {
            "types",
            "request",
            "spec",
            "samplers",
            "caches",
            "models",
            "rewards",
            "rollout",
            "video",
            "worlds",
        }
    ),
    "families": frozenset({"types", "models", "rewards", "pipeline"}),
    "serve": frozenset({"types", "pipeline", "rollout", "video"}),
}
FREE = frozenset({"cli", "recipes", "__main__", "__init__"})
"""Rooms that may import anything; `__init__` is the front door, which shows what the rooms hold."""

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "arvid"
DISTRIBUTION = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "prometheus_client": "prometheus-client",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}
"""Names under which a distribution is imported, where they differ."""


def room_of(path: Path, package: Path) -> str:
    """The room a file belongs to: the folder or the module directly under the package."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports_of(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything a file imports: relative, lazy and by string included.

    `from a import b` is reported as `a.b`, because b may be a module.
    """
    here = (package.name, *path.relative_to(package).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level]] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"} and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def _called(node: ast.Call) -> str:
    """The last name of what is called: `importlib.import_module(...)` gives import_module."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def violations(package: Path) -> list[str]:
    """One line per import that the table does not allow, and per file in a room the table does not know."""
    found = []
    for path in sorted(package.rglob("*.py")):
        room = room_of(path, package)
        if room in FREE:
            continue
        if room not in ARROWS:
            found.append(f"{path}: room {room} is not in the table; known rooms: {', '.join(sorted(ARROWS))}")
            continue
        for line, name in imports_of(path, package):
            parts = name.split(".")
            if parts[0] != package.name:
                continue
            other = parts[1] if len(parts) > 1 else "__init__"
            other = other if other in ARROWS or other in FREE else "__init__"
            if other not in ARROWS[room] | {room}:
                allowed = ", ".join(sorted(ARROWS[room])) or "nothing of ours"
                found.append(f"{path}:{line}: {room} imports {other} ({name}); it may import: {allowed}")
    return found


def test_no_import_against_the_table() -> None:
    assert violations(PACKAGE) == []


def test_the_table_has_no_cycle() -> None:
    order = list(graphlib.TopologicalSorter(ARROWS).static_order())
    assert set(order) == set(ARROWS)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("rollout/loop.py", "import arvid.models"),
        ("rollout/loop.py", "from arvid.models.wan import transformer"),
        ("rollout/loop.py", "from arvid import models"),
        ("rollout/loop.py", "def late():\n    from ..models import wan"),
        ("rollout/loop.py", "from .. import models"),
        ("rollout/deep/er.py", "from ...models import wan"),
        ("rollout/__init__.py", "from ..models import wan"),
        ("rollout/loop.py", "if False:\n    import arvid.cli.main as main"),
        ("rollout/loop.py", "import importlib\nimportlib.import_module('arvid.serve')"),
        ("rollout/loop.py", "import arvid"),
        ("rollout/loop.py", "from arvid import Pipeline"),
        ("types.py", "from arvid.layers import norms"),
        ("video.py", "from .rewards import frame"),
        ("train/flow.py", "from arvid.evals import suite"),
        ("attic/old.py", "import math"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / "arvid" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    assert len(violations(tmp_path / "arvid")) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("rollout/loop.py", "from arvid.types import Block\nfrom .state import save\nfrom ..caches import store"),
        ("models/wan/net.py", "from ..tae import Decoder\nfrom ...layers.rope import rotate\nimport torch"),
        ("cli/main.py", "import arvid.serve, arvid.train"),
        ("recipes/demo.py", "from arvid.models import wan"),
        ("__init__.py", "from arvid.pipeline import Pipeline"),
    ],
)
def test_an_allowed_import_passes(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / "arvid" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    assert violations(tmp_path / "arvid") == []


def test_every_library_we_import_is_a_declared_dependency() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'^ {4}"([\w-]+)(?:\[[\w,-]+\])?[<>=]', pyproject, flags=re.MULTILINE)
    declared = {name.lower() for name in named}
    assert {"torch", "pytest"} <= declared
    outside = {
        (DISTRIBUTION.get(top, top).lower(), str(path.relative_to(ROOT)))
        for path in sorted(PACKAGE.rglob("*.py"))
        for _, name in imports_of(path, PACKAGE)
        if (top := name.split(".")[0]) not in sys.stdlib_module_names | {"arvid"}
    }
    assert sorted(entry for entry in outside if entry[0] not in declared) == []
