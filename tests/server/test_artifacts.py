import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.artifacts import BlobStore
from server.errors import DamagedBlob, UnknownBlob


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.binary(max_size=200), max_size=5))
def test_what_is_put_is_got(store: BlobStore, pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    sha256 = store.put(iter(pieces))
    assert sha256 == hashlib.sha256(whole).hexdigest() == store.put(whole)
    assert store.get(sha256) == whole
    assert (store.has(sha256), store.size(sha256)) == (True, len(whole))


def test_a_blob_lies_under_its_hash(store: BlobStore, tmp_path: Path) -> None:
    sha256 = store.put(b"content")
    assert files(tmp_path / "blobs") == [f"{sha256[:2]}/{sha256[2:4]}/{sha256}"]
    assert store.path(sha256).read_bytes() == b"content"


def test_nothing_is_visible_before_it_is_complete(store: BlobStore, tmp_path: Path) -> None:
    sha256, seen = hashlib.sha256(b"onetwo").hexdigest(), []

    def pieces() -> Iterator[bytes]:
        yield b"one"
        seen.append(store.has(sha256))
        yield b"two"
        seen.append(store.has(sha256))

    assert store.put(pieces()) == sha256
    assert seen == [False, False]
    assert len(files(tmp_path / "blobs")) == 1


def test_a_broken_upload_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"one"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        store.put(pieces())
    assert files(tmp_path / "blobs") == []


def test_a_part_left_by_a_crash_is_no_blob(store: BlobStore, tmp_path: Path) -> None:
    sha256 = store.put(b"content")
    (tmp_path / "blobs" / "crash.part").write_bytes(b"cont")
    assert store.get(sha256) == b"content"
    with pytest.raises(UnknownBlob):
        store.get("crash.part")


def test_many_writers_of_the_same_content_agree(store: BlobStore, tmp_path: Path) -> None:
    data, ready, found = os.urandom(100_000), threading.Barrier(8), []

    def put() -> None:
        ready.wait()
        for _ in range(5):
            found.append(store.put(data))
            assert store.get(found[-1]) == data

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [hashlib.sha256(data).hexdigest()] * 40
    assert len(files(tmp_path / "blobs")) == 1


@pytest.mark.parametrize("damage", [b"contenT", b"", b"content and more"])
def test_damage_is_told_and_healed_by_putting_again(store: BlobStore, damage: bytes) -> None:
    sha256 = store.put(b"content")
    store.path(sha256).write_bytes(damage)
    message = rf"blob {sha256} has the hash {hashlib.sha256(damage).hexdigest()} on disk: it was damaged or replaced"
    with pytest.raises(DamagedBlob, match=message):
        store.get(sha256)
    store.put(b"content")
    assert store.get(sha256) == b"content"


def test_an_unknown_hash_is_named(store: BlobStore) -> None:
    with pytest.raises(UnknownBlob, match=f"nothing is stored under {'0' * 64}: it was never uploaded here"):
        store.get("0" * 64)
    assert not store.has("0" * 64)


@pytest.mark.parametrize(
    "name",
    ["", "abc", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, f"{'0' * 64}\n", f"{'0' * 62}/.", "\u0660" * 64],
)
def test_only_a_hash_names_a_blob(store: BlobStore, name: str) -> None:
    for ask in (store.get, store.has, store.path, store.size):
        with pytest.raises(UnknownBlob, match="is no SHA-256: write 64 lower-case hexadecimal digits"):
            ask(name)
