"""The data directory: a folder per job, names that cannot lead elsewhere, files that are whole or not there.

Knows: paths and ids. Does not know: what is in the files, the database.

    server        the name of this place; jobs in the database belong to it
    database      the name of the database in which they are
    lock          held by the server that uses the place
    arvid.db      the database, unless another one is named
    videos/ID/    the files of a job
    live/ID       what a live session has made so far
    trash/        what was deleted, until it is gone
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ID = re.compile(r"(?:video|live)_[0-9a-f]{32}")


class Place:
    """A data directory, made when it is missing. Raises ValueError when it cannot be written."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._lock: IO[str] | None = None
        try:
            for name in ("videos", "live", "trash"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            self.name = self._named()
        except OSError as error:
            raise ValueError(f"{self.root} cannot hold a server's data ({error.strerror}); name another") from error

    def _named(self) -> str:
        path = self.root / "server"
        if not path.is_file():
            with whole(path) as part:
                part.write_text(secrets.token_hex(16) + "\n", encoding="ascii")
        return path.read_text(encoding="ascii").strip()

    def belong(self, database: str, known: set[str]) -> None:
        """Note the name of the database that has the jobs of this place, the ids in `known`. Raises ValueError when
        another one is noted, and when none is but there are videos that it does not know: `sweep` would take them for
        nobody's."""
        path, here = self.root / "database", {folder.name for folder in (self.root / "videos").iterdir()}
        noted = path.read_text(encoding="ascii").strip() if path.is_file() else ""
        remedy = "name theirs with --database (or ARVID_DATABASE), or another --data"
        if noted and noted != database:
            raise ValueError(f"the jobs of {self.root} are in another database ({noted}, this is {database}); {remedy}")
        if not noted and here and not here & known:
            raise ValueError(f"{self.root} holds {len(here)} videos that this database does not know; {remedy}")
        if not noted:
            with whole(path) as part:
                part.write_text(database + "\n", encoding="ascii")

    def take(self) -> None:
        """Keep other servers out until this process ends. Raises ValueError when one is in."""
        import fcntl

        self._lock = (self.root / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.leave()
            raise ValueError(f"another server uses {self.root}; stop it, or name another --data") from error

    def leave(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def database(self) -> str:
        """The address of the database in this place."""
        return f"sqlite:///{self.root / 'arvid.db'}"

    def video(self, job: str) -> Path:
        """The folder of a job. Raises ValueError for what is no id."""
        return self._of("videos", job)

    def live(self, session: str) -> Path:
        """The file of a live session. Raises ValueError for what is no id."""
        return self._of("live", session)

    def _of(self, kind: str, name: str) -> Path:
        if not ID.fullmatch(name):
            raise ValueError(f"{name!r} is no id")
        return self.root / kind / name

    def remove(self, path: Path) -> None:
        """Delete a file or folder of this place: at once out of sight, then off the disk."""
        gone = self.root / "trash" / secrets.token_hex(8)
        try:
            os.replace(path, gone)
        except FileNotFoundError:
            return
        _erase(gone)

    def sweep(self, known: set[str]) -> None:
        """Delete what belongs to no job and what a killed server was deleting or making live."""
        for path in [*(self.root / "trash").iterdir(), *(self.root / "live").iterdir()]:
            _erase(path)
        for path in (self.root / "videos").iterdir():
            if path.name not in known:
                self.remove(path)


def _erase(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what was written takes the place of `path` at the end of the block, whole."""
    part = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.{path.name}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
