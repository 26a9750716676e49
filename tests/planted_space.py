"""Small spaces with planted tables and importance: enough freedom to go wrong, few enough configs to enumerate."""

from functools import cache
from itertools import product
from typing import Literal

import numpy as np

from nas.blocks import Block, Kind
from nas.config import Config, Stage
from nas.importance import Importance, Provenance, StageLogits
from nas.latency import LatencyModel
from nas.macs import gmacs
from nas.network import Structure
from nas.space import WIDTH_STEP, SearchSpace, StageChoices

Strides = tuple[Literal[16]] | tuple[Literal[16], Literal[32]]

PROVENANCE = Provenance(
    data="planted", seed=0, steps=0, noise="gumbel", precision="fp32", version="0", checkpoint_sha256="0" * 64
)


def small_space(strides: Strides | None = None) -> SearchSpace:
    two = (Kind.REP_CNN, Kind.WMSA)
    return SearchSpace(
        name="small",
        structure=Structure(classes=2, tcm_depths=(1, 1), anchor_px=(32,)),
        stages=(
            StageChoices(slots=1, widths=(32, 64), local_kinds=two),
            StageChoices(slots=2, widths=(32, 64), local_kinds=two),
            StageChoices(slots=1, widths=(32, 64), local_kinds=(Kind.REP_CNN, Kind.SWMSA)),
            StageChoices(slots=1, widths=(64, 96), local_kinds=two, global_kinds=(Kind.XCA, Kind.ATTENTION)),
        ),
        images=((64, 128),),
        strides=strides,
    )


def every_config(space: SearchSpace) -> list[Config]:
    """Enumerate a small space by brute force, with no help from the code under test but `contains`."""
    choices = []
    for stage in space.stages:
        kinds = (Kind.IDENTITY, *stage.local_kinds)
        choices.append(
            [
                Stage(width=width, slots=slots, global_kind=kind)
                for width, slots, kind in product(stage.widths, product(kinds, repeat=stage.slots), stage.global_kinds)
            ]
        )
    maps = [16 if stride == 16 else None for stride in space.prediction_strides]
    configs = (
        Config(space=space.id, image=space.images[0], stages=stages, stride=stride)
        for *stages, stride in product(*choices, maps)
    )
    return [config for config in configs if space.contains(config)]


@cache
def every_walk(space: SearchSpace) -> tuple[tuple[Block, ...], ...]:
    """Return the blocks of each of `every_config`, in its order."""
    return tuple(space.blocks(config) for config in every_config(space))


@cache
def blocks_of(space: SearchSpace) -> tuple[Block, ...]:
    """Return `all_blocks`: seconds for a large space, so once for all tests that plant a table."""
    return space.all_blocks()


def planted_importance(space: SearchSpace, seed: int) -> Importance:
    rng = np.random.default_rng(seed)
    stages = []
    for choices in space.stages:
        shares = np.sort(rng.random(choices.widths[-1] // WIDTH_STEP) + 0.1)[::-1]
        stages.append(
            StageLogits(
                slots=tuple(
                    {kind: float(rng.normal()) for kind in (*choices.local_kinds, Kind.IDENTITY)}
                    for _ in range(choices.slots)
                ),
                global_kinds={kind: float(rng.normal()) for kind in choices.global_kinds},
                group_share=tuple(float(share) for share in shares / shares.sum()),
            )
        )
    several = len(space.prediction_strides) > 1
    stride_ap50 = {stride: float(rng.uniform(0.5, 0.6)) for stride in space.prediction_strides} if several else None
    return Importance(space=space.id, stages=tuple(stages), stride_ap50=stride_ap50, provenance=PROVENANCE)


def planted_latency(space: SearchSpace, seed: int, *, margin: float = 0.0) -> LatencyModel:
    """Invent rows that grow with MACs, with noise large enough to reverse neighbours."""
    rng = np.random.default_rng(seed)
    blocks = sorted(blocks_of(space), key=lambda block: block.key)
    rows = {block: gmacs([block]) * 10 + float(rng.uniform(0.01, 0.05)) for block in blocks}
    return LatencyModel(rows, fetch_ms_per_mib=0.03, slope=1.1, margin=margin)
