"""The supernet: every slot of the largest config as a mixture of its candidates (paper eq. 8)."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nas.blocks import KERNEL, Block, Kind, Layout
from nas.config import Config
from nas.network import IMAGE
from nas.space import SearchSpace
from supernet.detector import build_block, module_key
from supernet.layers.aggregation import SCM
from supernet.layers.head import Head, RawPrediction
from supernet.layers.layout import to_spatial

Gates = Mapping[str, Tensor]
"""Weights of each mixture's candidates, (candidates,) or (B, candidates), by site name; identity last in a slot."""

Noise = Literal["gumbel", "uniform"]


class Mixture(nn.Module):
    """The candidates of one place, summed by their gates; candidates whose gate is exactly 0 do not run.

    Attributes:
        kinds: the candidates, in the order of the gates; the identity last.
        gives: the layout of the output: spatial where the identity is a candidate, that of the candidates otherwise.
    """

    def __init__(self, blocks: Sequence[Block], *, identity: bool) -> None:
        super().__init__()
        self.blocks = {block.kind: block for block in blocks}
        self.kinds = (*self.blocks, *([Kind.IDENTITY] if identity else []))
        self.gives = Layout.SPATIAL if identity else blocks[0].gives
        self.candidates = nn.ModuleDict({block.kind.value: build_block(block) for block in blocks})

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Mix the candidates' outputs of x (B, ...) by gates (candidates,), or by each image's own: (B, candidates)."""
        by_kind = gates.unsqueeze(0).unbind(-1) if gates.dim() == 1 else gates.unbind(-1)
        switched_on: list[Tensor] = [
            _weighted(self._output(kind, x), gate)
            for kind, gate in zip(self.kinds, by_kind, strict=True)
            if gate.detach().any()
        ]
        return sum(switched_on[1:], start=switched_on[0])

    def _output(self, kind: Kind, x: Tensor) -> Tensor:
        if kind is Kind.IDENTITY:
            return x
        block = self.blocks[kind]
        output: Tensor = self.candidates[kind.value](x)
        return output if block.gives is self.gives else to_spatial(output, block.gives, block.height, block.width)


class Supernet(nn.Module):
    """All detectors of a space in one module, at full width; narrower ones are cut out by `supernet.extraction`.

    Attributes:
        space: the search space it spans.
        walks: the walk over the largest config, by the stride of its prediction map.
        sites: all sites of these walks, each once.
        blocks: a module or a `Mixture` for each site.
        choices: the candidates of each mixture, by site name.
        logits: r of each mixture (candidates,), apart from the weights.
    """

    def __init__(self, space: SearchSpace, image: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.space = space
        self.frame = space.largest(image)
        self.walks = {stride: space.sites(space.with_stride(self.frame, stride)) for stride in space.prediction_strides}
        self.sites = tuple({site.name: site for walk in self.walks.values() for site in walk}.values())
        self.blocks = nn.ModuleDict()
        self.logits = nn.ParameterDict()
        self.choices: dict[str, tuple[Kind, ...]] = {}
        candidates = _candidates(space, self.frame)
        given = {IMAGE: Layout.SPATIAL}
        for site in self.sites:
            received = tuple(given[name] for name in site.inputs)
            blocks = [block.model_copy(update={"layouts": received}) for block in candidates[site.name]]
            module = _module(site.name, blocks, spare_kernel=space.structure.project_kernel or KERNEL)
            given[site.name] = module.gives if isinstance(module, Mixture) else blocks[0].gives
            self.blocks[module_key(site.name)] = module
            if isinstance(module, Mixture):
                self.choices[site.name] = module.kinds
                self.logits[module_key(site.name)] = nn.Parameter(torch.zeros(len(module.kinds)))

    def forward(self, images: Tensor, gates: Gates, stride: int) -> RawPrediction:
        """Predict with the candidates mixed by `gates`, on a map of the given stride.

        Images (B, 3, H, W), RGB in [0, 1].
        """
        values: dict[str, Any] = {IMAGE: images}
        for site in self.walks[stride]:
            inputs = [values[name] for name in site.inputs]
            if site.name in self.choices:
                inputs.append(gates[site.name])
            values[site.name] = self.blocks[module_key(site.name)](*inputs)
        prediction: RawPrediction = values[self.walks[stride][-1].name]
        return prediction

    def sample_gates(
        self, temperature: float, generator: torch.Generator, noise: Noise = "gumbel", *, images: int
    ) -> dict[str, Tensor]:
        """Return softmax((r + noise) / temperature) of each mixture (eq. 8), differentiable in r: (images, candidates).

        Each image has noise of its own: the gradient of r is then an average over as many draws. The paper calls the
        noise Gumbel and prints U(0, 1): `gumbel` is -log(-log u), `uniform` the printed one.
        """
        gates = {}
        for name, kinds in self.choices.items():
            noisy = self.logits_of(name) + _noise(images, len(kinds), generator, noise)
            gates[name] = torch.softmax(noisy / temperature, dim=-1)
        return gates

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

    def anchors(self, stride: int) -> Tensor:
        """Return the anchors of a prediction map: (N, 4)."""
        last = self.walks[stride][-1].name
        head = self.blocks[module_key(last)]
        if not isinstance(head, Head):
            raise TypeError(f"the walk must end at the head, not at {last}")
        return head.anchors


def _weighted(output: Tensor, gate: Tensor) -> Tensor:
    """Multiply an output (B, ...) by a gate for all images (1,) or for each (B,)."""
    return output * gate.view(-1, *(1,) * (output.dim() - 1))


def _candidates(space: SearchSpace, frame: Config) -> dict[str, list[Block]]:
    """Return the blocks that may stand at each site of the frame, found by walking it with each kind in turn."""
    found: dict[str, dict[Kind, Block]] = {}
    turns = range(max(max(len(c.local_kinds), len(c.global_kinds)) for c in space.stages))
    for turn, stride in product(turns, space.prediction_strides):
        config = space.with_stride(frame, stride)
        for index, (stage, choices) in enumerate(zip(frame.stages, space.stages, strict=True)):
            local = choices.local_kinds[turn % len(choices.local_kinds)]
            closing = choices.global_kinds[turn % len(choices.global_kinds)]
            turned = {"slots": (local,) * choices.slots, "global_kind": closing}
            config = config.with_stage(index, stage.model_copy(update=turned))
        for site in space.sites(config):
            found.setdefault(site.name, {}).setdefault(site.block.kind, site.block)
    return {name: list(blocks.values()) for name, blocks in found.items()}


def _module(site: str, blocks: list[Block], *, spare_kernel: int) -> nn.Module:
    stage, _, place = site.partition(".")
    if stage.startswith("stage") and place != "entry":
        return Mixture(blocks, identity=place != "global")
    # Subnets whose two widths differ need SCM's convolution even where the widest do not.
    return SCM(blocks[0], spare_kernel=spare_kernel) if blocks[0].kind is Kind.SCM else build_block(blocks[0])


def _noise(images: int, count: int, generator: torch.Generator, noise: Noise) -> Tensor:
    uniform = torch.rand(images, count, generator=generator)
    if noise == "uniform":
        return uniform
    tiny = torch.finfo(uniform.dtype).tiny
    return -torch.log((-torch.log(uniform.clamp(min=tiny))).clamp(min=tiny))
