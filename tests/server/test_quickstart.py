import subprocess
import sys
from pathlib import Path

from server.quickstart import SHARES, new_folder


def test_a_new_run_never_takes_the_folder_of_an_old_one(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        folder = new_folder(tmp_path)
        folder.mkdir()
        names.append(folder.name)

    assert names == ["quickstart-run", "quickstart-run-2", "quickstart-run-3"]


def test_targets_leave_room_at_both_ends() -> None:
    assert 0 < SHARES[0] < SHARES[1] < SHARES[2] < 1


def test_help_names_every_option() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "server.quickstart", "--help"], capture_output=True, text=True, check=True, timeout=60
    )

    assert all(option in result.stdout for option in ("--data", "--seed", "--steps", "--keep-serving"))


def test_a_wrong_option_is_a_wrong_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server.quickstart", "--seed", "-1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)

    assert result.returncode == 2
    assert "--seed" in result.stderr
    assert list(tmp_path.iterdir()) == []
