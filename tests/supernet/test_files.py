"""Folders that are there whole or not at all, whatever kills the process that fills them."""

import platform
import subprocess
import sys
from pathlib import Path

from supernet.files import whole_folder


def left_by_a_killed_process(target: Path) -> Path:
    program = f"""
import os, signal
from pathlib import Path
from supernet.files import whole_folder

with whole_folder(Path({str(target)!r})) as partial:
    (partial / "images").mkdir()
    (partial / "images" / "1.png").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    [left] = target.parent.iterdir()
    return left


def test_what_a_killed_process_left_goes_when_the_folder_is_filled_again(tmp_path: Path) -> None:
    target = tmp_path / "shapes [small]"
    left = left_by_a_killed_process(target)
    assert (left / "images" / "1.png").exists()
    with whole_folder(target) as partial:
        assert list(tmp_path.iterdir()) == [partial]
        (partial / "whole").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        target.name,
        f"{target.name}/whole",
    ]


def test_what_others_fill_or_another_machine_left_stays(tmp_path: Path) -> None:
    target = tmp_path / "shapes"
    left = left_by_a_killed_process(target)
    others = [
        left.rename(left.with_name(left.name.replace(platform.node(), "elsewhere"))),
        tmp_path / ".shapes.partial-notes",
        tmp_path / ".shapes-2.partial",
    ]
    for other in others:
        other.mkdir(exist_ok=True)
    with whole_folder(target) as first, whole_folder(target) as second:  # of a process that lives
        assert sorted(tmp_path.iterdir()) == sorted([*others, first, second])
    assert sorted(tmp_path.iterdir()) == sorted([*others, target])
