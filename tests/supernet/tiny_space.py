"""The smallest space and data set that can still be trained: 64x64 images, seconds on one core."""

from pathlib import Path

from nas.blocks import Activation, Kind
from nas.network import Structure
from nas.space import SearchSpace, StageChoices
from supernet.procedural import make_dataset

TINY = SearchSpace(
    name="tiny",
    structure=Structure(classes=3, activation=Activation.RELU, tcm_depths=(1, 1), anchor_px=(16, 32)),
    stages=(
        StageChoices(slots=1, widths=(32,), local_kinds=(Kind.REP_CNN, Kind.WMSA)),
        StageChoices(slots=1, widths=(32,), local_kinds=(Kind.REP_CNN,)),
        StageChoices(slots=1, widths=(32, 64), local_kinds=(Kind.REP_CNN,)),
        StageChoices(slots=1, widths=(32, 64), local_kinds=(Kind.SWMSA,), global_kinds=(Kind.XCA, Kind.ATTENTION)),
    ),
    images=((64, 64),),
)


def tiny_data(folder: Path) -> Path:
    return make_dataset(folder, images=12, size=64, seed=3, held_out=4)
