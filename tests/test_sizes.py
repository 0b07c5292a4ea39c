"""The shape of the house: sizes, the front door, and the few things that may stand in a few places only."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "arvid"
LINES_PER_FILE = 400
LINES_PER_MODEL_FILE = 800
LINES_PER_FUNCTION = 60
LINES_OF_THE_LOOP = 25
PUBLIC_NAMES = 30
FIELDS_PER_DATACLASS = 10
MAY_DRAW_NOISE = ("samplers/noise.py", "train/", "worlds/", "models/")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def too_long(package: Path) -> list[str]:
    """Files with more lines than their room allows."""
    found = []
    for path, name in _files(package):
        limit = LINES_PER_MODEL_FILE if name.startswith("models/") else LINES_PER_FILE
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > limit:
            found.append(f"{name}: {lines} lines, at most {limit}; split it where it answers two questions")
    return found


def too_long_functions(package: Path) -> list[str]:
    """Functions with more lines than allowed, their docstring not counted."""
    found = []
    for path, name in _files(package):
        limit = LINES_OF_THE_LOOP if name == "rollout/loop.py" else LINES_PER_FUNCTION
        for node in ast.walk(_tree(path)):
            if isinstance(node, Function) and (lines := _function_lines(node)) > limit:
                found.append(f"{name}:{node.lineno}: {node.name} has {lines} lines, at most {limit}")
    return found


def _function_lines(node: Function) -> int:
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def too_many_fields(package: Path) -> list[str]:
    """Dataclasses with more fields than a reader keeps in mind."""
    found = []
    for path, name in _files(package):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields = sum(isinstance(line, ast.AnnAssign) for line in node.body)
                if fields > FIELDS_PER_DATACLASS:
                    found.append(
                        f"{name}:{node.lineno}: {node.name} has {fields} fields, at most {FIELDS_PER_DATACLASS}"
                    )
    return found


def stray_noise(package: Path) -> list[str]:
    """Uses of torch.randn and its kin outside the files that may draw noise: a rollout asks its Noise for it."""
    found = []
    for path, name in _files(package):
        if name.startswith(MAY_DRAW_NOISE):
            continue
        for node in ast.walk(_tree(path)):
            drawn = [node.attr] if isinstance(node, ast.Attribute) else []
            if isinstance(node, ast.ImportFrom) and node.module == "torch":
                drawn = [alias.name for alias in node.names]
            if any(word.startswith("randn") or word == "normal_" for word in drawn):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)}; ask samplers/noise.py by (block, step)")
    return found


def unsafe_loads(package: Path) -> list[str]:
    """Calls of torch.load that may run code from the file they read."""
    found = []
    for path, name in _files(package):
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if given.get("weights_only") != "True":
                    found.append(f"{name}:{node.lineno}: torch.load without weights_only=True")
    return found


def front_door(package: Path) -> list[str]:
    """What is wrong with `__all__` of the package: too many names, unsorted, twice the same."""
    for node in _tree(package / "__init__.py").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = list(ast.literal_eval(node.value))
            return [
                *([f"{len(names)} public names, at most {PUBLIC_NAMES}"] if len(names) > PUBLIC_NAMES else []),
                *(["__all__ is not sorted"] if names != sorted(names) else []),
                *(["__all__ names something twice"] if len(names) != len(set(names)) else []),
            ]
    return []


def unexplained(package: Path) -> list[str]:
    """Modules whose first lines do not say what they know and what they do not."""
    found = []
    for path, name in _files(package):
        tree = _tree(path)
        text = " ".join((ast.get_docstring(tree) or "").split())
        if tree.body and not ("Knows" in text and "oes not know" in text):
            found.append(f'{name}: the module docstring lacks "Knows: ..." or "Does not know: ..."')
    return found


def _files(package: Path) -> list[tuple[Path, str]]:
    """Every Python file and its name relative to the package."""
    return [(path, path.relative_to(package).as_posix()) for path in sorted(package.rglob("*.py"))]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


Rule = Callable[[Path], list[str]]
PLANTED: list[tuple[Rule, str, str]] = [
    (too_long, "rollout/big.py", "x = 1\n" * (LINES_PER_FILE + 1)),
    (too_long, "models/big.py", "x = 1\n" * (LINES_PER_MODEL_FILE + 1)),
    (too_long_functions, "caches/long.py", "def walk():\n" + "    x = 1\n" * LINES_PER_FUNCTION),
    (too_long_functions, "rollout/loop.py", "def walk():\n" + "    x = 1\n" * LINES_OF_THE_LOOP),
    (
        too_many_fields,
        "types.py",
        "@dataclass(frozen=True)\nclass Bag:\n" + "".join(f"    f{i}: int\n" for i in range(11)),
    ),
    (stray_noise, "rollout/loop.py", "import torch\nx = torch.randn(3)"),
    (stray_noise, "caches/store.py", "def f(x):\n    return torch.randn_like(x)"),
    (stray_noise, "rewards/frame.py", "from torch import randn"),
    (unsafe_loads, "models/read.py", "x = torch.load('weights.pt')"),
    (unsafe_loads, "train/trainer.py", "x = torch.load('weights.pt', weights_only=False)"),
    (front_door, "__init__.py", "__all__ = ['b', 'a']"),
    (front_door, "__init__.py", f"__all__ = {[f'n{i:02}' for i in range(PUBLIC_NAMES + 1)]}"),
    (unexplained, "caches/store.py", '"""A store."""\nx = 1'),
]
RULES: list[Rule] = list(dict.fromkeys(rule for rule, _, _ in PLANTED))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_shape(rule: Rule) -> None:
    assert rule(PACKAGE) == []


@pytest.mark.parametrize(("rule", "file", "text"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_breach_is_found(tmp_path: Path, rule: Rule, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    assert len(rule(tmp_path)) == 1


@pytest.mark.parametrize(
    ("rule", "file", "text"),
    [
        (too_long_functions, "rollout/loop.py", "def walk():\n" + "    x = 1\n" * (LINES_OF_THE_LOOP - 1)),
        (too_long_functions, "a.py", 'def walk():\n    """Long\n' + "    text\n" * 80 + '    """\n    return 1\n'),
        (stray_noise, "samplers/noise.py", "x = torch.randn(3)"),
        (unsafe_loads, "models/read.py", "x = torch.load('weights.pt', weights_only=True)"),
        (front_door, "__init__.py", "__all__ = ['Block', 'Pipeline', 'load']"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_allowed_passes(tmp_path: Path, rule: Rule, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    assert rule(tmp_path) == []
