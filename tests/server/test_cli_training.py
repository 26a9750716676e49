import csv
import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.cli_training import TrainingTeller
from server.cli_training_options import DEFAULT_SPACE, space_of
from supernet.checkpoint import Origin
from supernet.pretrained import Transfer
from supernet.procedural import make_dataset


def test_a_named_schedule_is_stretched_to_the_epochs_asked_for(tmp_path: Path) -> None:
    """At a fixed epoch 8 a run of 4 would never learn at the lower rates."""
    data = make_dataset(tmp_path / "shapes", images=8, size=64, seed=3, held_out=2)
    small = ["--space", "heatdetr-nano", "--config", "smallest", "--batch", "4", "--image", "192x192"]
    order = ["train", str(data), "--out", str(tmp_path / "run"), "--recipe", "1x", "--epochs", "4", *small]
    done = CliRunner().invoke(app, order)
    assert done.exit_code == 0, done.output
    assert "\nrate 0.0001, falling to a tenth after epochs 2.667 and 3.667 of 4\n" in done.stdout
    with (tmp_path / "run" / "curve.csv").open() as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    # Of the last of the two steps of each epoch; half of the run is warm-up.
    assert rates == pytest.approx([0.5e-4, 1e-4, 1e-5, 1e-6])


def test_what_speaks_against_the_weights_taken_is_said_right_after_them() -> None:
    origin = Origin(file="best.safetensors", sha256="0" * 64, taken=2, unfit=0, missing=0, left_over=0)
    out = io.StringIO()
    teller = TrainingTeller(str, out)
    teller.transfer(Transfer(origin, {"stem": ("a", "b")}, {}, {}, {}, "trained with gelu"))
    teller.transfer(Transfer(origin, {"stem": ("a", "b")}, {}, {}, {}, None))
    taken = "weights of best.safetensors: 2 tensors taken (stem 2)"
    assert out.getvalue().splitlines() == [taken, "warning: trained with gelu", taken]


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_space_beside_a_config_that_brings_its_own_is_refused(command: str, tmp_path: Path) -> None:
    """It would be passed over, and the detector would be of another space than its command says."""
    order = [command, str(tmp_path), "--out", str(tmp_path / "run"), "--config", "config.json", "--space", "heatdetr"]
    done = CliRunner().invoke(app, order)
    assert (done.exit_code, done.stderr) == (
        1,
        "heatnas: --space heatdetr: config.json brings its own space; leave the option out\n",
    )
    assert not (tmp_path / "run").exists()
    assert space_of("config.json", None) == space_of("largest", None) == DEFAULT_SPACE == "heatdetr-edge"
    assert space_of("largest", "heatdetr") == "heatdetr"


@pytest.mark.parametrize(
    "command",
    [
        ["train", "shapes", "--out", "run", "--learning-rate"],
        ["train", "shapes", "--out", "run", "--ema"],
        ["train", "shapes", "--out", "run", "--drop-path"],
        ["detect", "photo.png", "--detector", "best.safetensors", "--out", "drawn", "--score"],
        ["data", "convert", "voc", "shapes", "--val-share"],
        ["pretrain", "photos", "--out", "run", "--held-out"],
    ],
    ids=lambda command: command[-1],
)
def test_what_is_no_number_passes_no_bound(command: list[str], tmp_path: Path) -> None:
    """NaN is neither below nor above a bound, and passed those of earlier versions of Typer."""
    command = [str(tmp_path) if word == "voc" else word for word in command]
    done = CliRunner().invoke(app, [*command, "nan"])
    assert done.exit_code == 2
    assert f"Invalid value for '{command[-1]}'" in done.stderr


def test_an_endless_rate_is_no_rate() -> None:
    done = CliRunner().invoke(app, ["train", "shapes", "--out", "run", "--learning-rate", "inf"])
    assert done.exit_code == 2
    assert "inf is no number: write digits, such as 25 or 0.5" in " ".join(done.stderr.replace("│", " ").split())
