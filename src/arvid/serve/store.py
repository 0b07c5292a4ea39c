"""The database: jobs and keys, SQLite or any other that SQLAlchemy speaks to.

Knows: its tables and what is asked of them, each call one transaction. Does not know: files, pipelines, HTTP.

A job belongs to a place (the data directory that holds its files), so that several servers may share one database.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Integer,
    String,
    Text,
    UniqueConstraint,
    create_engine,
    delete,
    event,
    func,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

QUEUED, RUNNING, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"
UNFINISHED = (QUEUED, RUNNING)
DatabaseError = SQLAlchemyError
"""What a call raises when the database cannot be reached."""
NUMBER = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """The tables."""


class Job(Base):
    """A video that was asked for. `asked` is what the engine needs to make it, `report` what is told about it,
    `attempts` counts how often it was begun since its last saved state; times are Unix seconds."""

    __tablename__ = "jobs"
    __table_args__ = (UniqueConstraint("place", "owner", "repeat"),)

    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    place: Mapped[str] = mapped_column(String(64), index=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    repeat: Mapped[str | None] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(16), index=True, default=QUEUED)
    progress: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    kind: Mapped[str] = mapped_column(String(16))
    model: Mapped[str] = mapped_column(String(255))
    prompt: Mapped[str] = mapped_column(Text)
    seconds: Mapped[str] = mapped_column(String(32))
    size: Mapped[str] = mapped_column(String(32))
    source: Mapped[str | None] = mapped_column(String(64))
    asked: Mapped[dict[str, Any]] = mapped_column(JSON)
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[int] = mapped_column(NUMBER)
    completed_at: Mapped[int | None] = mapped_column(NUMBER)


class Key(Base):
    """Somebody who may use the server. Only a hash of the secret is kept, and its first letters to tell keys apart."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    begins: Mapped[str] = mapped_column(String(16))
    requests: Mapped[int]
    jobs: Mapped[int]
    sessions: Mapped[int]
    created_at: Mapped[int] = mapped_column(NUMBER)


class Name(Base):
    """What the database is called: one row, made when somebody asks."""

    __tablename__ = "names"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(64))


def now() -> int:
    """Unix seconds."""
    return int(time.time())


def new_id(kind: str) -> str:
    """An id nobody can guess, like video_5f..."""
    return f"{kind}_{secrets.token_hex(16)}"


class Store:
    """The tables of one place. Safe for use by several threads.

    Raises ValueError when the database cannot be reached.
    """

    def __init__(self, url: str, place: str = "") -> None:
        self.place = place
        try:
            lite = make_url(url).get_backend_name() == "sqlite"
            self._engine = create_engine(url, connect_args={"timeout": 30} if lite else {}, pool_pre_ping=not lite)
            if lite:
                event.listen(self._engine, "connect", _durable)
            Base.metadata.create_all(self._engine)
            with self._session() as session:
                for table in (Job, Key, Name):  # that they have the columns of this version
                    session.scalars(select(table).limit(0)).all()
        except (SQLAlchemyError, ArgumentError, ImportError) as error:
            raise unusable(error) from error

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def _session(self) -> Session:
        return Session(self._engine, expire_on_commit=False)

    @property
    def name(self) -> str:
        """What the database is called: the same wherever it lies, and like no other."""
        with self._session() as session:
            found = session.scalars(select(Name.name)).first()
        if found is None:
            with contextlib.suppress(IntegrityError), self._session() as session, session.begin():
                session.add(Name(number=1, name=secrets.token_hex(16)))
            with self._session() as session:
                found = session.scalars(select(Name.name)).one()
        return found

    # ------------------------------------------------------------ jobs

    def add(self, job: Job) -> tuple[Job, bool]:
        """Accept a job. One that repeats an earlier request of its owner gives that one, and False."""
        job.place = self.place
        try:
            with self._session() as session, session.begin():
                session.add(job)
            return job, True
        except IntegrityError:
            found = self.repeated(job.owner, job.repeat)
            if found is None:
                raise
            return found, False

    def repeated(self, owner: str, repeat: str | None) -> Job | None:
        """The job that an earlier request of `owner` with the same mark made."""
        if repeat is None:
            return None
        mine = (Job.place == self.place, Job.owner == owner, Job.repeat == repeat)
        with self._session() as session:
            return session.scalars(select(Job).where(*mine)).first()

    def get(self, job: str, owner: str | None = None) -> Job | None:
        """A job; None when there is none, or it is not the owner's (None: anybody's)."""
        with self._session() as session:
            found = session.scalars(select(Job).where(Job.place == self.place, Job.id == job)).first()
        return found if found is not None and owner in (None, found.owner) else None

    def page(self, owner: str, after: Job | None, limit: int, ascending: bool) -> tuple[Sequence[Job], bool]:
        """Some jobs of an owner in order of their making, those behind `after`; and whether there are more."""
        asked = select(Job).where(Job.place == self.place, Job.owner == owner)
        if after is not None:
            asked = asked.where(Job.number > after.number if ascending else Job.number < after.number)
        asked = asked.order_by(Job.number.asc() if ascending else Job.number.desc()).limit(limit + 1)
        with self._session() as session:
            found = session.scalars(asked).all()
        return found[:limit], len(found) > limit

    def count(self, owner: str | None = None, states: Sequence[str] = UNFINISHED) -> int:
        """How many jobs of an owner (None: everybody) are in one of these states."""
        asked = select(func.count()).select_from(Job).where(Job.place == self.place, Job.status.in_(states))
        if owner is not None:
            asked = asked.where(Job.owner == owner)
        with self._session() as session:
            return session.execute(asked).scalar_one()

    def claim(self) -> Job | None:
        """The job that has waited longest, now running."""
        waiting = select(Job).where(Job.place == self.place, Job.status == QUEUED).order_by(Job.number).limit(1)
        with self._session() as session, session.begin():
            job = session.scalars(waiting).first()
            if job is not None:
                job.status, job.attempts = RUNNING, job.attempts + 1
            return job

    def change(self, job: str, **values: Any) -> bool:
        """Note something about a job. False when it was deleted."""
        with self._session() as session, session.begin():
            mine = update(Job).where(Job.place == self.place, Job.id == job).values(**values).returning(Job.number)
            return session.execute(mine).first() is not None

    def retry(self, job: str) -> bool:
        """Have a failed job wait again. False when it is not failed (any more): of several who ask, one gets True."""
        failed = (Job.place == self.place, Job.id == job, Job.status == FAILED)
        again = update(Job).where(*failed).values(status=QUEUED, error=None, attempts=0, completed_at=None)
        with self._session() as session, session.begin():
            return session.execute(again.returning(Job.number)).first() is not None

    def delete(self, job: str) -> bool:
        """Forget a job. False when it was forgotten before."""
        with self._session() as session, session.begin():
            mine = delete(Job).where(Job.place == self.place, Job.id == job).returning(Job.number)
            return session.execute(mine).first() is not None

    def requeue(self) -> int:
        """Have jobs wait again that ran when the server ended. How many there were."""
        left = update(Job).where(Job.place == self.place, Job.status == RUNNING).values(status=QUEUED)
        with self._session() as session, session.begin():
            return len(session.execute(left.returning(Job.number)).all())

    def ids(self) -> set[str]:
        """All jobs."""
        with self._session() as session:
            return set(session.scalars(select(Job.id).where(Job.place == self.place)))

    # ------------------------------------------------------------ keys

    def add_key(self, key: Key) -> None:
        """Let somebody in. Raises ValueError when the name is taken."""
        try:
            with self._session() as session, session.begin():
                session.add(key)
        except IntegrityError as error:
            raise ValueError(f"there is a key named {key.name!r}; remove it first, or take another name") from error

    def key_of(self, hashed: str) -> Key | None:
        """The key whose secret has this hash."""
        with self._session() as session:
            return session.scalars(select(Key).where(Key.hash == hashed)).first()

    def all_keys(self) -> Sequence[Key]:
        """All keys, the oldest first."""
        with self._session() as session:
            return session.scalars(select(Key).order_by(Key.created_at, Key.name)).all()

    def remove_key(self, name: str) -> bool:
        """Let somebody in no longer. False when there is no such key."""
        with self._session() as session, session.begin():
            return session.execute(delete(Key).where(Key.name == name).returning(Key.id)).first() is not None


def _durable(connection: Any, record: Any) -> None:
    """What is accepted stays accepted; readers and the writer do not wait for each other."""
    for setting in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {setting}").close()


def unusable(error: BaseException) -> ValueError:
    """What is told, on one line, of a database that cannot be used."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"the database cannot be used ({first}); check its address, and that it is of this version")
