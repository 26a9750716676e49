"""The search spaces of the product, and the four detectors of the paper's Table 3."""

from nas.blocks import Activation, Kind
from nas.config import Config, Stage
from nas.errors import InvalidConfig, UnknownSpace
from nas.network import Structure
from nas.runtime_profile import RuntimeProfile, fitted
from nas.space import WIDTH_STEP, SearchSpace, StageChoices


def _stages(
    depths: tuple[int, ...], widths: tuple[tuple[int, ...], ...], last_global: tuple[Kind, ...]
) -> tuple[StageChoices, StageChoices, StageChoices, StageChoices]:
    first, second, third, fourth = (
        StageChoices(slots=depth, widths=steps, global_kinds=last_global if number == 3 else (Kind.XCA,))
        for number, (depth, steps) in enumerate(zip(depths, widths, strict=True))
    )
    return first, second, third, fourth


def _steps(low: int, high: int) -> tuple[int, ...]:
    return tuple(range(low, high + 1, WIDTH_STEP))


# The smallest frame that contains all four nets of the paper's Table 3.
_PAPER_DEPTHS = (2, 2, 18, 2)
_PAPER_WIDTHS = (_steps(64, 192), _steps(64, 192), _steps(64, 256), _steps(64, 384))
_PAPER_IMAGES = ((640, 640), (832, 1344))

_SPACES = {
    space.name: space
    for space in (
        # Its token attention would be 16 times as dear on a prediction map at stride 16.
        SearchSpace(
            name="heatdetr",
            structure=Structure(classes=80, context_kind=Kind.SPARSE_ATTENTION, keep=0.82),
            stages=_stages(_PAPER_DEPTHS, _PAPER_WIDTHS, (Kind.SPARSE_ATTENTION, Kind.ATTENTION, Kind.XCA)),
            images=_PAPER_IMAGES,
        ),
        # The same for devices with little memory (paper section 4.3): all global attention is channel-wise.
        SearchSpace(
            name="heatdetr-xca",
            structure=Structure(classes=80),
            stages=_stages(_PAPER_DEPTHS, _PAPER_WIDTHS, (Kind.XCA,)),
            images=_PAPER_IMAGES,
            strides=(16, 32),
        ),
        SearchSpace(
            name="heatdetr-edge",
            structure=Structure(classes=80, activation=Activation.HARDSWISH),
            stages=_stages(
                (2, 2, 6, 2),
                (_steps(32, 96), _steps(64, 128), _steps(64, 192), _steps(96, 256)),
                (Kind.XCA, Kind.ATTENTION),
            ),
            images=tuple((side, side) for side in (256, 320, 384, 448, 512, 640)),
            strides=(16, 32),
        ),
        SearchSpace(
            name="heatdetr-nano",
            structure=Structure(classes=3, activation=Activation.RELU, tcm_depths=(1, 1), anchor_px=(16, 32, 64, 128)),
            stages=_stages((1, 2, 3, 1), ((32, 64), (32, 64), (64, 96), (64, 96, 128)), (Kind.XCA, Kind.ATTENTION)),
            images=((192, 192),),
        ),
    )
}

SPACE_NAMES = tuple(_SPACES)
"""The spaces `named_space` knows, without a runtime profile."""

SPACE_HELP = f"one of {', '.join(SPACE_NAMES)}; " + ", ".join(
    f"NAME@{profile} is the space for {profile.runtime}" for profile in RuntimeProfile
)
"""How a space is named, in words."""

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


def named_space(name: str, *, classes: int) -> SearchSpace:
    """Return a space of the product for a number of object classes.

    `NAME@PROFILE` is the space with the layout and activation of a runtime profile. `NAME` alone is bound to none: on
    tokens, with the paper's GELU in heatdetr, Hardswish in heatdetr-edge and ReLU in heatdetr-nano.

    Raises:
        UnknownSpace: no space or no profile has this name.
    """
    base, at, profile = name.partition("@")
    if base not in _SPACES:
        raise UnknownSpace(f"space {name!r} is unknown: choose one of {', '.join(SPACE_NAMES)}")
    space = _SPACES[base]
    structure = space.structure.model_copy(update={"classes": classes})
    if at:
        if profile not in tuple(RuntimeProfile):
            raise UnknownSpace(
                f"space {name!r} asks for the unknown runtime profile {profile!r}: choose one of "
                f"{', '.join(f'{base}@{known}' for known in RuntimeProfile)}, or {base} for none"
            )
        structure = fitted(structure, RuntimeProfile(profile))
    return space.model_copy(update={"name": name, "structure": structure})


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
