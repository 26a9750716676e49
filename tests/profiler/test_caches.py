from pathlib import Path

import numpy as np
import pytest

from profiler.caches import SWEEPS_PER_CACHE, UNKNOWN_CACHE_BYTES, make_eviction, private_cache_bytes


def write_caches(root: Path, *sizes: tuple[str, str]) -> None:
    for index, (level, size) in enumerate(sizes):
        folder = root / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")


@pytest.mark.parametrize(("size", "expected"), [("1024K", 1024**2), ("2M", 2 * 1024**2), ("4096", 4096)])
def test_second_level_is_the_private_cache(tmp_path: Path, size: str, expected: int) -> None:
    write_caches(tmp_path, ("1", "48K"), ("1", "32K"), ("2", size), ("3", "32768K"))
    assert private_cache_bytes(tmp_path) == expected


def test_system_that_does_not_tell_is_unknown(tmp_path: Path) -> None:
    assert private_cache_bytes(tmp_path) is None


def test_nonsense_from_the_system_is_unknown(tmp_path: Path) -> None:
    write_caches(tmp_path, ("2", "much"))
    assert private_cache_bytes(tmp_path) is None


def test_eviction_reads_more_than_the_cache_holds_known_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, ones = [], np.ones

    def noted(count: int, dtype: type) -> np.ndarray:
        sizes.append(count * np.dtype(dtype).itemsize)
        return ones(count, dtype)

    monkeypatch.setattr(np, "ones", noted)
    make_eviction(tmp_path)()
    write_caches(tmp_path, ("2", "256K"))
    make_eviction(tmp_path)()
    assert sizes == [SWEEPS_PER_CACHE * UNKNOWN_CACHE_BYTES, SWEEPS_PER_CACHE * 256 * 1024]
