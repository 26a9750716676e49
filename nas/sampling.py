"""Random configs of a space: for references, baselines and tests."""

import numpy as np

from nas.blocks import Kind
from nas.config import Config, Stage
from nas.space import SearchSpace, StageChoices


def random_config(space: SearchSpace, rng: np.random.Generator, *, image: tuple[int, int] | None = None) -> Config:
    """Draw a legal config: any kinds, at least one block a stage, widths that never fall, any closing block and stride.

    Every round draws anew and hits each legal config at its size with the same chance; there is always one (the
    narrowest, in full depth), so the rounds end.

    Raises:
        InvalidConfig: the space has no such input size.
    """
    size = space.input_size(image or space.images[int(rng.integers(len(space.images)))])
    while True:
        first, second, third, fourth = (_random_stage(choices, rng) for choices in space.stages)
        config = Config(space=space.id, image=size, stages=(first, second, third, fourth))
        if space.strides is not None:
            config = space.with_stride(config, int(rng.choice(space.prediction_strides)))
        if space.contains(config):
            return config


def _random_stage(choices: StageChoices, rng: np.random.Generator) -> Stage:
    kinds = (Kind.IDENTITY, *choices.local_kinds)
    return Stage(
        width=int(rng.choice(choices.widths)),
        slots=tuple(kinds[int(index)] for index in rng.integers(len(kinds), size=choices.slots)),
        global_kind=choices.global_kinds[int(rng.integers(len(choices.global_kinds)))],
    )
