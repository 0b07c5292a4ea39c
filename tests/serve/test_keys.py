"""Keys and the data directory: secrets are not kept, rates hold, names lead nowhere else, one server at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arvid.serve.keys import Gate, hashed, make_key
from arvid.serve.limits import Allowance, Limits
from arvid.serve.place import Place, whole
from arvid.serve.refusals import Refused
from arvid.serve.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty database."""
    made = Store(Place(tmp_path).database)
    yield made
    made.close()


def test_the_secret_is_kept_nowhere(store: Store, tmp_path: Path) -> None:
    secret = make_key(store, "ann", Allowance())
    store.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert secret.encode() not in kept and secret[6:].encode() not in kept
    assert hashed(secret).encode() in kept


def test_only_keys_open_a_locked_door(store: Store) -> None:
    secret, gate = make_key(store, "ann", Allowance(5, 6, 7)), Gate(store, True, Allowance())
    caller = gate.admit(secret)
    assert caller.owner.startswith("key_") and caller.allowance == Allowance(5, 6, 7)
    for wrong in ("", secret + "x", secret[:-1], "arvid-", "\ud800"):
        with pytest.raises(Refused) as refused:
            gate.admit(wrong)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
        assert secret not in refused.value.message
    store.remove_key("ann")
    with pytest.raises(Refused):
        gate.admit(secret)
    assert Gate(store, False, Allowance(jobs=3)).admit("whatever").allowance.jobs == 3


def test_requests_a_minute(store: Store) -> None:
    now = 0.0
    secret, gate = make_key(store, "ann", Allowance(requests=6)), Gate(store, True, Allowance(), lambda: now)
    other = make_key(store, "bob", Allowance(requests=6))
    for _ in range(6):
        gate.admit(secret)
    with pytest.raises(Refused) as refused:
        gate.admit(secret)
    assert (refused.value.status, refused.value.headers) == (429, {"retry-after": "10"})
    gate.admit(other)
    now = 10.1
    gate.admit(secret)
    with pytest.raises(Refused):
        gate.admit(secret)
    now = 1000.0
    for _ in range(6):
        gate.admit(secret)
    with pytest.raises(Refused):
        gate.admit(secret)


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "\n"])
def test_names_are_plain(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="write up to 64 letters"):
        make_key(store, name, Allowance())


def test_a_name_is_taken_once(store: Store) -> None:
    make_key(store, "ann", Allowance())
    with pytest.raises(ValueError, match="there is a key named 'ann'"):
        make_key(store, "ann", Allowance())


@pytest.mark.parametrize("name", ["..", "../lock", "video_1", "video_" + "g" * 32, "video_" + "0" * 32 + "/..", ""])
def test_ids_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no id"):
        Place(tmp_path).video(name)


def test_one_server_uses_a_place(tmp_path: Path) -> None:
    first, second = Place(tmp_path), Place(tmp_path)
    assert first.name == second.name != Place(tmp_path / "other").name
    first.take()
    with pytest.raises(ValueError, match="another server uses"):
        second.take()
    first.leave()
    second.take()
    second.leave()


def test_what_belongs_to_nobody_is_swept(tmp_path: Path) -> None:
    place = Place(tmp_path)
    names = [f"video_{digit * 32}" for digit in "ab"]
    for name in names:
        place.video(name).mkdir()
        (place.video(name) / "video.mp4").write_text("x", encoding="utf-8")
    (place.root / "trash" / "half").mkdir()
    place.live("live_" + "c" * 32).write_text("x", encoding="utf-8")
    place.sweep({names[0]})
    left = sorted(str(path.relative_to(place.root)) for path in place.root.rglob("*"))
    assert left == ["live", "server", "trash", "videos", f"videos/{names[0]}", f"videos/{names[0]}/video.mp4"]


def test_a_place_belongs_to_one_database(tmp_path: Path) -> None:
    video = f"video_{'a' * 32}"
    Place(tmp_path).belong("one", set())
    Place(tmp_path).belong("one", set())
    Place(tmp_path).video(video).mkdir()
    with pytest.raises(ValueError, match=r"are in another database \(one, this is two\); name theirs with --database"):
        Place(tmp_path).belong("two", {video})
    Place(tmp_path).belong("one", set())


def test_a_place_of_a_time_before_names_is_known_by_its_videos(tmp_path: Path) -> None:
    place = Place(tmp_path)
    videos = [f"video_{digit * 32}" for digit in "abc"]
    for video in videos[:2]:
        place.video(video).mkdir()
    for known in (set(), {videos[2]}):
        with pytest.raises(ValueError, match="holds 2 videos that this database does not know; name theirs"):
            place.belong("one", known)
    place.belong("one", {videos[1]})
    place.belong("one", set())


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(RuntimeError), whole(path) as part:
        part.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole(path) as part:
        part.write_text("whole", encoding="utf-8")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "whole" and list(tmp_path.iterdir()) == [path]


def test_limits_are_above_nothing() -> None:
    with pytest.raises(ValueError, match="limits must be above 0"):
        Limits(seconds=0)
    with pytest.raises(ValueError, match="allowances must be at least 0"):
        Allowance(jobs=-1)
