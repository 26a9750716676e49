"""Train thinned subnets beside the mixture, so that they keep their accuracy with inherited weights.

Building a module for every subnet drawn would cost more than running it. Instead one narrow supernet stands for each
choice of widths: its weights are slices of the wide one's, and one-hot gates pick the blocks.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import TypeVar

import numpy as np
from torch import Tensor, nn
from torch.func import functional_call

from nas.blocks import Kind
from nas.config import Config, Stage
from nas.space import SearchSpace, StageChoices
from supernet.detector import module_key
from supernet.extraction import Slice, cut, mixture_slices
from supernet.layers.global_attention import token_orders
from supernet.layers.head import RawPrediction
from supernet.supernet import Gates, Supernet

Widths = tuple[int, ...]
T = TypeVar("T")


class Sandwich:
    """Runs subnets on slices of a supernet's weights.

    Which channels a narrow subnet keeps follows their strength; the ranking is taken anew by `rank`, not at every step.

    Attributes:
        supernet: the supernet whose weights are trained.
    """

    def __init__(self, supernet: Supernet) -> None:
        self.supernet = supernet
        self._narrow: dict[Widths, Supernet] = {}
        self._sparsity = 1.0
        self._orders = token_orders(supernet)
        self._slices: dict[Widths, dict[str, Slice]] = {}

    def rank(self) -> None:
        """Forget the ranking of channels: the next run of each width takes the present one."""
        self._slices.clear()

    def set_sparsity(self, share: float) -> None:
        """Have all sparse attention, of the supernet and of its subnets, leave out a share (0 to 1) of its tokens."""
        self._sparsity = share
        for order in self._orders:
            order.sparsity = share

    def predict(self, widths: Widths, images: Tensor, gates: Gates, stride: int) -> RawPrediction:
        """Predict at the given widths and stride.

        Gradients flow into the supernet, its running statistics stay as they are.
        """
        if widths not in self._narrow:
            self._narrow[widths] = _narrowed(self.supernet, widths)
            self._orders += token_orders(self._narrow[widths])
            self.set_sparsity(self._sparsity)
        narrow = self._narrow[widths]
        if widths not in self._slices:
            self._slices[widths] = mixture_slices(self.supernet, narrow)
        idle = _idle_prefixes(narrow, gates, stride)
        weights = dict(self.supernet.named_parameters())
        parameters = {
            name: cut(weights[part.source], part)
            for name, part in self._slices[widths].items()
            if part.source in weights and not name.startswith(idle)
        }
        prediction: RawPrediction = functional_call(narrow, parameters, (images, gates, stride))
        return prediction


def sample_config(supernet: Supernet, turn: int, *, seed: int) -> Config:
    """Draw the config of one subnet step: of the supernet's size, kinds and widths in fair turns.

    Each candidate of a place has its turn once in as many steps as there are candidates, in an order drawn anew each
    time (strict fairness, FairNAS section 3): a kind that was trained more often would look more important than it is.
    So has each legal choice of widths, and each stride. Every stage keeps at least one local block.
    """
    space = supernet.space
    widths = _in_turn(legal_widths(space), turn, (seed, len(supernet.choices)))
    first, second, third, fourth = (
        Stage(
            width=width,
            slots=_turn_of_slots(supernet, number, choices, turn, seed),
            global_kind=_turn_of(supernet, f"stage{number}.global", choices.global_kinds, turn, seed),
        )
        for number, (choices, width) in enumerate(zip(space.stages, widths, strict=True), start=1)
    )
    config = Config(space=space.id, image=supernet.frame.image, stages=(first, second, third, fourth))
    stride = _in_turn(space.prediction_strides, turn, (seed, len(supernet.choices) + 1))
    return space.check(space.with_stride(config, stride))


@lru_cache(maxsize=8)
def legal_widths(space: SearchSpace) -> tuple[Widths, ...]:
    """List the choices of four widths that do not fall from a stage to the next."""
    return tuple(
        widths for widths in product(*(choices.widths for choices in space.stages)) if [*widths] == sorted(widths)
    )


def _turn_of_slots(supernet: Supernet, number: int, choices: StageChoices, turn: int, seed: int) -> tuple[Kind, ...]:
    names = [f"stage{number}.slot{slot}" for slot in range(choices.slots)]
    if len(names) == 1:  # the only block of a stage stays
        return (_turn_of(supernet, names[0], choices.local_kinds, turn, seed),)
    slots = tuple(_turn_of(supernet, name, supernet.choices[name], turn, seed) for name in names)
    if any(kind is not Kind.IDENTITY for kind in slots):
        return slots
    return (_turn_of(supernet, names[0], choices.local_kinds, turn, seed), *slots[1:])


def _turn_of(supernet: Supernet, name: str, kinds: Sequence[Kind], turn: int, seed: int) -> Kind:
    """Return whose turn it is at a place."""
    return _in_turn(kinds, turn, (seed, list(supernet.choices).index(name)))


def _in_turn(candidates: Sequence[T], turn: int, seed: tuple[int, int]) -> T:
    """Go through the candidates again and again, in an order of its own each time."""
    cycle, position = divmod(turn, len(candidates))
    order = np.random.default_rng((*seed, cycle)).permutation(len(candidates))
    return candidates[int(order[position])]


def _narrowed(supernet: Supernet, widths: Widths) -> Supernet:
    first, second, third, fourth = (
        choices.model_copy(update={"widths": (width,)})
        for choices, width in zip(supernet.space.stages, widths, strict=True)
    )
    space = supernet.space.model_copy(update={"stages": (first, second, third, fourth)})
    narrow = Supernet(space, supernet.frame.image).requires_grad_(requires_grad=False)
    for module in narrow.modules():
        for name, weight in module.named_parameters(recurse=False):
            # Only the shape is of use: every weight that runs is replaced by a slice.
            setattr(module, name, nn.Parameter(weight.to("meta"), requires_grad=False))
    return narrow


def _idle_prefixes(narrow: Supernet, gates: Gates, stride: int) -> tuple[str, ...]:
    """Return the name prefixes of what does not run: candidates whose gate is exactly 0, sites of another stride."""
    running = {site.name for site in narrow.walks[stride]}
    elsewhere = tuple(f"blocks.{module_key(site.name)}." for site in narrow.sites if site.name not in running)
    return elsewhere + tuple(
        f"blocks.{module_key(name)}.candidates.{kind.value}."
        for name, kinds in narrow.choices.items()
        for kind, gate in zip(kinds, gates[name].tolist(), strict=True)
        if gate == 0
    )
