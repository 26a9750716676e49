"""Train thinned subnets beside the mixture, so that they keep their accuracy with inherited weights.

Building a module for every subnet drawn would cost more than running it. Instead one narrow supernet stands for each
choice of widths: its weights are slices of the wide one's, and one-hot gates pick the blocks.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas.blocks import Kind
from nas.config import Config, Stage
from nas.space import SearchSpace, StageChoices
from supernet.detector import module_key
from supernet.extraction import Slice, cut, mixture_slices
from supernet.layers.head import RawPrediction
from supernet.supernet import Gates, Supernet

Widths = tuple[int, ...]


class Sandwich:
    """Runs subnets on slices of a supernet's weights.

    Which channels a narrow subnet keeps follows their strength; the ranking is taken anew by `rank`, not at every step.

    Attributes:
        supernet: the supernet whose weights are trained.
    """

    def __init__(self, supernet: Supernet) -> None:
        self.supernet = supernet
        self._narrow: dict[Widths, Supernet] = {}
        self._slices: dict[Widths, dict[str, Slice]] = {}

    def rank(self) -> None:
        """Forget the ranking of channels: the next run of each width takes the present one."""
        self._slices.clear()

    def predict(self, widths: Widths, images: Tensor, gates: Gates) -> RawPrediction:
        """Predict at the given widths; gradients flow into the supernet, its running statistics stay as they are."""
        if widths not in self._narrow:
            self._narrow[widths] = _narrowed(self.supernet, widths)
        narrow = self._narrow[widths]
        if widths not in self._slices:
            self._slices[widths] = mixture_slices(self.supernet, narrow)
        idle = _idle_prefixes(narrow, gates)
        weights = dict(self.supernet.named_parameters())
        parameters = {
            name: cut(weights[part.source], part)
            for name, part in self._slices[widths].items()
            if part.source in weights and not name.startswith(idle)
        }
        prediction: RawPrediction = functional_call(narrow, parameters, (images, gates))
        return prediction


def sample_config(supernet: Supernet, rng: np.random.Generator) -> Config:
    """Draw a config of the supernet's size: kinds with probability softmax(r), widths evenly.

    Every stage keeps at least one local block; widths do not fall from a stage to the next.
    """
    space = supernet.space
    first, second, third, fourth = (
        Stage(
            width=width,
            slots=_sample_slots(supernet, number, choices, rng),
            global_kind=_sample_kind(supernet, f"stage{number}.global", rng),
        )
        for number, (choices, width) in enumerate(zip(space.stages, sample_widths(space, rng), strict=True), start=1)
    )
    return space.check(Config(space=space.id, image=supernet.frame.image, stages=(first, second, third, fourth)))


def sample_widths(space: SearchSpace, rng: np.random.Generator) -> Widths:
    """Draw the four widths evenly among those that do not fall from a stage to the next."""
    while True:
        widths = [int(rng.choice(choices.widths)) for choices in space.stages]
        if widths == sorted(widths):
            return tuple(widths)


def _sample_slots(supernet: Supernet, number: int, choices: StageChoices, rng: np.random.Generator) -> tuple[Kind, ...]:
    while True:
        slots = tuple(_sample_kind(supernet, f"stage{number}.slot{slot}", rng) for slot in range(choices.slots))
        if any(kind is not Kind.IDENTITY for kind in slots):
            return slots


def _sample_kind(supernet: Supernet, name: str, rng: np.random.Generator) -> Kind:
    probabilities = torch.softmax(supernet.logits_of(name).detach().double(), dim=0).numpy()
    return supernet.choices[name][rng.choice(len(probabilities), p=probabilities / probabilities.sum())]


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


def _idle_prefixes(narrow: Supernet, gates: Gates) -> tuple[str, ...]:
    """Return the name prefixes of the candidates whose gate is exactly 0: they do not run."""
    return tuple(
        f"blocks.{module_key(name)}.candidates.{kind.value}."
        for name, kinds in narrow.choices.items()
        for kind, gate in zip(kinds, gates[name].tolist(), strict=True)
        if gate == 0
    )
