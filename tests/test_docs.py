"""The pages are true: links lead somewhere, commands exist as written, the methods page covers every system."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_arrows import ARROWS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")])
COMMAND_LINE = ROOT / "src" / "arvid" / "cli" / "main.py"
STATES = {"works", "planned"}
PROGRAMS = {"arvid", ".venv/bin/arvid"}
SYSTEMS = frozenset(
    """
    SDVG; VideoAR; FLEX; HiAR; Mutual Forcing; Causal Forcing++; SEE4D; X-Actor; FlowCache; ARVAE; NFD; Voyager; MMPL;
    Forcing-KV; SoulX-LiveAct; Lumos-1; CausalCine; Diagonal Distillation; FAR; Self-Forcing++; StreamingT2V; IAMFlow;
    DiCoDe; Astrolabe; JPEG-LM; NAR; NBP; Ca2-VDM; LARP; STARFlow-V; DrivingWorld; Autoregressive Models in Vision;
    CubeComposer; AR-Diffusion; Astra; LongLive; TempCache; ARFlow; VAR; Light Forcing; SAR; DreamFoley; RealCam; VA-π;
    Lyra 2.0; MCVD; SpeakerVid-5M; DVGFormer; GVS; Axial Transformer; LongLive-2.0; D-AR; Deep Forcing; Infinity-RoPE;
    PackForcing; VARGPT-v1.1
    """.replace("\n", " ")
    .strip()
    .split(";")
)


def commands_of(text: str) -> list[list[str]]:
    """Every arvid command in the ```bash blocks of a page, as words: lines joined, pipes and files cut off."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            lexer.commenters = "#"
            piece: list[str] = []
            for word in [*lexer, ";"]:
                if word and set(word) <= set("();<>|&"):
                    if piece and piece[0] in PROGRAMS:
                        found.append(piece)
                    piece = []
                else:
                    piece.append(word)
    return found


def unknown_in(words: list[str]) -> list[str]:
    """What the command line does not know of a command: a verb or an option."""
    from typer.main import get_command

    from arvid.cli.main import app

    command, rest = get_command(app), list(words[1:])
    while rest and (verbs := getattr(command, "commands", None)) is not None and not rest[0].startswith("-"):
        if rest[0] not in verbs:
            return [f"{' '.join(words)}: no verb {rest[0]}; known: {', '.join(sorted(verbs))}"]
        command = verbs[rest.pop(0)]
    known = {"--help", *(name for option in command.params for name in [*option.opts, *option.secondary_opts])}
    used = [word.split("=")[0] for word in rest if re.match(r"--?(?!inf$)[A-Za-z]", word)]
    return [
        f"{' '.join(words)}: no option {name}; known: {', '.join(sorted(known))}" for name in used if name not in known
    ]


def commands_of_all_pages() -> Iterator[tuple[str, list[str]]]:
    """(page, command) of every command line in a bash block, and of every one that the methods page names."""
    for page in PAGES:
        for words in commands_of(page.read_text(encoding="utf-8")):
            yield page.relative_to(ROOT).as_posix(), words
    for row in rows_of_methods():
        for shown in re.findall(r"`(arvid [^`]+)`", row["shown by"]):
            yield "docs/methods.md", shlex.split(shown)


def rows_of_methods() -> list[dict[str, str]]:
    """The rows of the methods page, by column."""
    return table_after((ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), "system")


def table_after(text: str, first_column: str) -> list[dict[str, str]]:
    """The rows of the last table whose first column has this name."""
    rows: list[dict[str, str]] = []
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells and cells[0] == first_column:
            header, rows = cells, []
        elif not cells:
            header = []
        elif header and not set(cells[0]) <= set("-: "):
            assert len(cells) == len(header), f"{len(cells)} cells where {len(header)} are named: {line}"
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def test_commands_are_found_in_bash_blocks_only() -> None:
    text = (
        "```bash\n# first\narvid generate 'a red ball' \\\n  --seed 3 | cat\n.venv/bin/arvid demo && ls > x\n"
        "make demo\necho x | arvid generate --json r.json\n```\n```python\narvid = 3\n```\narvid nothing\n"
    )
    assert commands_of(text) == [
        ["arvid", "generate", "a red ball", "--seed", "3"],
        [".venv/bin/arvid", "demo"],
        ["arvid", "generate", "--json", "r.json"],
    ]


@pytest.mark.skipif(not COMMAND_LINE.exists(), reason="there is no command line yet")
def test_every_command_in_the_pages_exists_with_its_options() -> None:
    wrong = [f"{page}: {line}" for page, words in commands_of_all_pages() for line in unknown_in(words)]
    assert wrong == []


@pytest.mark.skipif(not COMMAND_LINE.exists(), reason="there is no command line yet")
def test_every_verb_in_the_pages_explains_itself() -> None:
    from typer.testing import CliRunner

    from arvid.cli.main import app

    verbs = set()
    for _, words in commands_of_all_pages():
        verbs.add(tuple(word for word in words[1:3] if re.fullmatch(r"[a-z][a-z-]*", word)))
    for verb in sorted(verbs):
        result = CliRunner().invoke(app, [*verb, "--help"])
        assert result.exit_code == 0, f"arvid {' '.join(verb)} --help ended with {result.exit_code}: {result.output}"
        assert "Usage" in result.output


@pytest.mark.skipif(not COMMAND_LINE.exists(), reason="there is no command line yet")
@pytest.mark.parametrize("line", ["arvid no-such-verb", "arvid generate x --no-such-option"])
def test_a_wrong_command_is_found(line: str) -> None:
    assert len(unknown_in(shlex.split(line))) == 1


def test_the_methods_page_has_one_row_per_system() -> None:
    names = [re.findall(r"^\*\*(.+?)\*\*: .+ \(\d{4}\.\d{5}\)$", row["system"]) for row in rows_of_methods()]
    assert all(len(name) == 1 for name in names), "a system is written: **short name**: title (arXiv number)"
    assert sorted(name for [name] in names) == sorted(name.strip() for name in SYSTEMS)
    assert len(SYSTEMS) == 56


def test_every_method_is_described_and_placed() -> None:
    for row in rows_of_methods():
        assert row["state"] in STATES, f"{row['system']}: state {row['state']}; known: {', '.join(sorted(STATES))}"
        assert len(row["what it is"]) > 30, row
        assert re.search(r"`[^`]+`", row["where"]), row


def test_a_method_that_works_is_there_and_shown() -> None:
    working = [row for row in rows_of_methods() if row["state"] == "works"]
    assert working
    for row in working:
        missing = [path for path in re.findall(r"`((?:src|docs)/[^`]+)`", row["where"]) if not (ROOT / path).exists()]
        assert missing == [], f"{row['system']} works, but is not where the page says: {missing}"
        shown = re.findall(r"`([^`]+)`", row["shown by"])
        tests = [line.split("::")[0] for line in shown if line.startswith("tests/")]
        assert tests or any(line.startswith("arvid ") for line in shown), f"{row['system']}: no command and no test"
        assert all((ROOT / path).exists() for path in tests), row["shown by"]


def test_the_import_table_in_the_pages_is_the_one_that_is_checked() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("<!-- arrows:")[1]
    rows = {row["room"]: row["may import"] for row in table_after(text.split("\n\n## ")[0], "room")}
    assert rows.pop("cli, recipes, tests") == "anything"
    written = {room: set() if allowed == "nothing" else set(allowed.split(", ")) for room, allowed in rows.items()}
    assert written == {room: set(allowed) for room, allowed in ARROWS.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)\s#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_sizes_of_every_recipe_are_on_the_page() -> None:
    """Names and defaults, as the code has them."""
    import dataclasses
    import importlib

    from arvid.cli.train import RECIPES

    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("## Sizes")[2]
    rows = {row.split("|")[1].strip(" `"): row for row in page.splitlines() if row.startswith("| `")}
    assert rows.keys() == RECIPES.keys()
    for recipe, module in RECIPES.items():
        for field in dataclasses.fields(importlib.import_module(module).Sizes):
            shown = f"`{field.name}` {field.default}".strip() if field.default != "" else f"`{field.name}`"
            assert shown in rows[recipe], f"{recipe}: {shown}"
