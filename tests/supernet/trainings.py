"""Trainings of seconds: the tiny space, twelve images."""

from pathlib import Path

from supernet.augment import Augmentation
from supernet.dataset import CocoDataset
from supernet.detector_training import Splits
from supernet.recipe import Recipe

RECIPE = Recipe(
    epochs=3,
    batch=4,
    learning_rate=1e-3,
    schedule="cosine",
    milestones=(),
    warmup_steps=2,
    clip_norm=5,
    ema=0.5,
    drop_path=0.2,
    precision="fp32",
    evaluate_every=2,
)

FROZEN = RECIPE.model_copy(
    update={"frozen_norm": True, "drop_path": 0.0, "epochs": 2, "augmentation": Augmentation(light=0)}
)
"""No statistics of a batch and no chance but the order of images: how a batch is split makes no difference."""


def splits(data: Path) -> Splits:
    return Splits("shapes", CocoDataset(data, "train", image=None), CocoDataset(data, "val", image=(64, 64)))
