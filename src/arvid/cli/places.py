"""Where results go: files, checked before anything runs and written whole or not at all, and the terminal.

Knows: names of files, patterns with {n}, folders, what a terminal does not say. Does not know: what is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console


@dataclass(frozen=True)
class Places:
    """Files of one video; None where nothing was asked for."""

    video: Path
    report: Path | None = None
    latents: Path | None = None
    sheet: Path | None = None

    def named(self) -> dict[str, str]:
        """The files that were asked for, by what they hold."""
        found = {"video": self.video, "report": self.report, "latents": self.latents, "contact_sheet": self.sheet}
        return {name: str(path) for name, path in found.items() if path is not None}


def places_for(count: int, many: bool, video: str, report: str, latents: str, sheet: str) -> list[Places]:
    """The files of `count` videos. With `many` each option is a folder or a name with {n}, the number of the video.

    Raises ValueError for a name with another ending, a folder that does not exist or cannot be written into, and one
    name for several videos.
    """
    columns = [
        _column(count, many, video, ".mp4", "-o"),
        _column(count, many, report, ".json", "--json"),
        _column(count, many, latents, ".safetensors", "--latents"),
        _column(count, many, sheet, ".png", "--contact-sheet"),
    ]
    found = []
    for number in range(count):
        first = columns[0][number]
        assert first is not None
        found.append(Places(first, columns[1][number], columns[2][number], columns[3][number]))
    return found


def _column(count: int, many: bool, text: str, ending: str, option: str) -> list[Path | None]:
    if not text:
        return [None] * count
    if not many:
        file_for(Path(text), ending, option)
        return [Path(text)]
    if "{n}" in text:
        found = [Path(text.replace("{n}", f"{number:03d}")) for number in range(1, count + 1)]
        file_for(found[0], ending, option)
        return list(found)
    folder = Path(text)
    if folder.suffix == ending and not folder.is_dir():
        if count > 1:
            raise ValueError(f"{option} {text} is one name for {count} prompts; give a folder or a name with {{n}}")
        file_for(folder, ending, option)
        return [folder]
    writable(folder if folder.is_dir() else folder.absolute().parent)
    return [folder / f"{number:03d}{ending}" for number in range(1, count + 1)]


def file_for(path: Path, ending: str, option: str) -> None:
    """Raises ValueError unless the file that an option names ends as it should and can be written."""
    if path.suffix.lower() != ending:
        raise ValueError(f"{option} {path} ends in {path.suffix or 'nothing'}; it is written as {ending}: name it so")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file in it")
    writable(path.absolute().parent)


def folder_for(folder: Path, option: str) -> None:
    """Raises ValueError unless the folder that an option names is there, or can be made, and can be written into."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{option} {folder} is a file; name a folder")
    writable(folder if folder.is_dir() else folder.absolute().parent)


def writable(folder: Path) -> None:
    """Raises ValueError when a folder does not exist or nothing can be written there."""
    if not folder.is_dir():
        raise ValueError(f"folder {folder} does not exist; make it first or choose another")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write into {folder} ({error.strerror}); choose another folder") from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it is moved to `path` when all went well, and removed otherwise."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """A whole file or none."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def stdout(width: int) -> Console:
    """The terminal; where there is none, `width` columns."""
    console = Console()
    return console if console.is_terminal else Console(width=width)
