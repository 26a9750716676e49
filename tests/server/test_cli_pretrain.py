import re
from pathlib import Path
from typing import get_type_hints

import pytest
from PIL import Image
from typer.testing import CliRunner

from server.cli import app
from server.cli_pretrain import pretrain
from supernet.pictures import SUFFIXES


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for label, name in enumerate("ab"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40), (255 * label, 9, 9)).save(tmp_path / "photos" / split / name / "0.png")
    return tmp_path / "photos"


def test_a_share_is_not_held_out_in_silence_where_the_folder_holds_out_images(photos: Path, tmp_path: Path) -> None:
    order = ["pretrain", str(photos), "--out", str(tmp_path / "run"), "--held-out", "0.5"]
    done = CliRunner().invoke(app, order)
    assert (done.exit_code, done.stderr) == (
        1,
        f"heatnas: --held-out 0.5: {photos} has a folder val of its own; leave the option out\n",
    )
    assert not (tmp_path / "run").exists()


def test_the_help_names_every_file_that_counts_as_an_image() -> None:
    (argument,) = get_type_hints(pretrain, include_extras=True)["images"].__metadata__
    assert tuple(re.findall(r"\.[a-z]+", argument.help)) == SUFFIXES
