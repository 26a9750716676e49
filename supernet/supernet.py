"""The supernet: every slot of the largest config as a mixture of its candidates (paper eq. 8)."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nas.blocks import Block, Kind, Layout
from nas.config import Config
from nas.network import IMAGE, Site
from nas.space import SearchSpace
from supernet.detector import build_block, module_key
from supernet.layers.aggregation import SCM
from supernet.layers.head import Head, RawPrediction
from supernet.layers.layout import to_spatial

Gates = Mapping[str, Tensor]
"""Weights of each mixture's candidates, by site name; identity last in a slot. A plain value: nothing remembers it."""

Noise = Literal["gumbel", "uniform"]


class Mixture(nn.Module):
    """The candidates of one place, summed by their gates; candidates whose gate is exactly 0 do not run.

    Attributes:
        kinds: the candidates, in the order of the gates.
        gives: the layout of the output.
    """

    def __init__(self, block: Block, kinds: tuple[Kind, ...], *, gives: Layout) -> None:
        super().__init__()
        self.block, self.kinds, self.gives = block, kinds, gives
        self.candidates = nn.ModuleDict(
            {
                kind.value: build_block(block.model_copy(update={"kind": kind}))
                for kind in kinds
                if kind is not Kind.IDENTITY
            }
        )

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Mix the candidates' outputs of x by gates (candidates,)."""
        switched_on: list[Tensor] = [
            gate * self._output(kind, x)
            for kind, gate, value in zip(self.kinds, gates, gates.tolist(), strict=True)
            if value != 0
        ]

        return sum(switched_on[1:], start=switched_on[0])

    def _output(self, kind: Kind, x: Tensor) -> Tensor:
        if kind is Kind.IDENTITY:
            return x
        output: Tensor = self.candidates[kind.value](x)
        if self.gives is Layout.TOKENS:
            return output
        given = self.block.model_copy(update={"kind": kind}).gives
        return to_spatial(output, given, self.block.height, self.block.width)


class Supernet(nn.Module):
    """All detectors of a space in one module, at full width; narrower ones are cut out by `supernet.extraction`.

    Attributes:
        space: the search space it spans.
        sites: the walk over the largest config.
        blocks: a module or a `Mixture` for each site.
        logits: r of each mixture (candidates,), apart from the weights.
    """

    def __init__(self, space: SearchSpace, image: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.space = space
        self.frame = space.largest(image)
        self.sites: tuple[Site, ...] = space.sites(self.frame)
        self.choices = _choices(space)
        self.blocks = nn.ModuleDict()
        self.logits = nn.ParameterDict()
        given = {IMAGE: Layout.SPATIAL}
        for site in self.sites:
            block = site.block.model_copy(update={"layouts": tuple(given[name] for name in site.inputs)})
            kinds = self.choices.get(site.name)
            given[site.name] = Layout.SPATIAL if kinds and Kind.IDENTITY in kinds else block.gives
            self.blocks[module_key(site.name)] = _module(block, kinds, gives=given[site.name])
            if kinds:
                self.logits[module_key(site.name)] = nn.Parameter(torch.zeros(len(kinds)))

    def forward(self, images: Tensor, gates: Gates) -> RawPrediction:
        """Predict with the candidates mixed by `gates`; images (B, 3, H, W), RGB in [0, 1]."""
        values: dict[str, Any] = {IMAGE: images}
        for site in self.sites:
            inputs = [values[name] for name in site.inputs]
            if site.name in self.choices:
                inputs.append(gates[site.name])
            values[site.name] = self.blocks[module_key(site.name)](*inputs)
        prediction: RawPrediction = values[self.sites[-1].name]
        return prediction

    def sample_gates(
        self, temperature: float, generator: torch.Generator, noise: Noise = "gumbel"
    ) -> dict[str, Tensor]:
        """Return softmax((r + noise) / temperature) for each mixture (eq. 8), differentiable in r.

        The paper calls the noise Gumbel and prints U(0, 1): `gumbel` is -log(-log u), `uniform` the printed one.
        """
        return {
            name: torch.softmax((self.logits_of(name) + _noise(len(kinds), generator, noise)) / temperature, dim=0)
            for name, kinds in self.choices.items()
        }

    def one_hot_gates(self, config: Config) -> dict[str, Tensor]:
        """Return the gates that run exactly the blocks of `config`, at full width."""
        running = {site.name: site.block.kind for site in self.space.sites(self.space.check(config))}
        return {
            name: torch.tensor([float(kind is running.get(name, Kind.IDENTITY)) for kind in kinds])
            for name, kinds in self.choices.items()
        }

    def logits_of(self, name: str) -> Tensor:
        """Return r of one mixture (candidates,), by site name."""
        logits: Tensor = self.logits[module_key(name)]
        return logits

    def architecture_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the logits r."""
        yield from self.logits.parameters()

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """Yield every parameter but the logits."""
        yield from self.blocks.parameters()

    @property
    def head(self) -> Head:
        """The detection head, which holds the anchors."""
        head = self.blocks[module_key(self.sites[-1].name)]
        if not isinstance(head, Head):
            raise TypeError(f"the walk must end at the head, not at {self.sites[-1].name}")
        return head


def _choices(space: SearchSpace) -> dict[str, tuple[Kind, ...]]:
    """Return the candidates of each place where a choice stands, by site name."""
    found: dict[str, tuple[Kind, ...]] = {}
    for number, stage in enumerate(space.stages, start=1):
        for slot in range(stage.slots):
            found[f"stage{number}.slot{slot}"] = (*stage.local_kinds, Kind.IDENTITY)
        found[f"stage{number}.global"] = stage.global_kinds
    return found


def _module(block: Block, kinds: tuple[Kind, ...] | None, *, gives: Layout) -> nn.Module:
    if kinds:
        return Mixture(block, kinds, gives=gives)
    # Subnets whose two widths differ need SCM's 3x3 convolution even where the widest do not.
    return SCM(block, spare=True) if block.kind is Kind.SCM else build_block(block)


def _noise(count: int, generator: torch.Generator, noise: Noise) -> Tensor:
    uniform = torch.rand(count, generator=generator)
    if noise == "uniform":
        return uniform
    tiny = torch.finfo(uniform.dtype).tiny
    return -torch.log((-torch.log(uniform.clamp(min=tiny))).clamp(min=tiny))
