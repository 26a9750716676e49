"""The four detectors of the paper's Table 3, as configs of the space `heatdetr`."""

from nas.blocks import Kind
from nas.config import Config, Stage
from nas.errors import InvalidConfig
from nas.space import SearchSpace

_R, _W, _S = Kind.REP_CNN, Kind.WMSA, Kind.SWMSA

# Widths and local blocks per stage. Stage 2 of small, medium and large holds one (RepCNN, SWMSA) pair: N_2 = 2, so the
# printed "x2" cannot be meant (specification section 4.4).
_TABLE_3 = {
    "heatdetr-tiny": ((128, 128, 256, 384), ((_R,), (_R,), (_W, _S) * 3, (_W,))),
    "heatdetr-small": ((128, 128, 256, 384), ((_R, _R), (_R, _S), (_R, _S, *(_W, _S) * 2), (_R, _S))),
    "heatdetr-medium": ((128, 128, 224, 384), ((_R, _R), (_R, _S), (_R, _S) * 4 + (_W, _S) * 5, (_R, _S))),
    "heatdetr-large": ((192, 192, 256, 384), ((_R, _R), (_R, _S), (_R, _S) * 4 + (_W, _S) * 5, (_R, _S))),
}

CONFIG_NAMES = tuple(_TABLE_3)
"""The configs `named_config` knows."""


PAPER_GFLOPS = {"heatdetr-tiny": 67, "heatdetr-small": 69, "heatdetr-medium": 73, "heatdetr-large": 108}
"""What Table 3 prints for them, in multiply-adds of 1e9."""


def named_config(name: str, space: SearchSpace, *, image: tuple[int, int]) -> Config:
    """Return a detector of Table 3 as a config of `space`, at any input size (Table 3's 800x1333 is not in the space).

    Raises:
        InvalidConfig: no detector has this name, or the space does not hold it at any size.
    """
    if name not in _TABLE_3:
        raise InvalidConfig(f"config {name!r} is unknown: choose one of {', '.join(CONFIG_NAMES)}")
    widths, local = _TABLE_3[name]
    first, second, third, fourth = (
        Stage(
            width=width,
            slots=kinds + (Kind.IDENTITY,) * (choices.slots - len(kinds)),
            global_kind=choices.global_kinds[0],
        )
        for width, kinds, choices in zip(widths, local, space.stages, strict=True)
    )
    config = Config(space=space.id, image=space.input_size(None), stages=(first, second, third, fourth))
    config = space.with_stride(config, space.prediction_strides[-1])
    return space.check(config).model_copy(update={"image": image})
