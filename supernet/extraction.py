"""Cut a subnet out of a supernet: which slice of which supernet tensor each of its parameters is, said as data.

Each residual stream (the channels that the blocks of a stage add to) keeps its most important groups of 32 channels.
Everything private to a block scales along: hidden widths and whole heads keep their leading part, channel-wise
attention the leading channels of each of its 8 heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, assert_never

import torch
from torch import Tensor, nn

from nas.blocks import HEAD_WIDTH, XCA_HEADS
from nas.config import Config
from nas.network import IMAGE, T1_STREAMS, Site
from supernet.detector import HeatDETR, module_key
from supernet.layers.axes import Axis, Sliceable, Writer
from supernet.supernet import Mixture, Supernet


class Slice(NamedTuple):
    """Where a subnet tensor comes from.

    Attributes:
        source: name of the supernet's tensor.
        axes: the indices kept along each axis; None keeps all.
    """

    source: str
    axes: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Stream:
    """Channels that several blocks read and write.

    Attributes:
        name: that of `Site.stream`, or `image`.
        segments: equal parts that are narrowed alike: T1 has a classification and a regression half.
    """

    name: str
    segments: int = 1

    @property
    def group(self) -> int:
        """Channels that are kept or lost together in each segment."""
        return HEAD_WIDTH // self.segments


def extract(supernet: Supernet, config: Config) -> HeatDETR:
    """Return the config's detector with the supernet's weights and BatchNorm statistics, copied.

    At less than full width the statistics are those of the wide network: estimate them anew before evaluating.
    """
    with torch.random.fork_rng(devices=()):
        subnet = HeatDETR(supernet.space, config).train(supernet.training)
    state = supernet.state_dict()
    subnet.load_state_dict({name: cut(state[part.source], part) for name, part in slices(supernet, config).items()})
    return subnet


def sliced_parameters(supernet: Supernet, config: Config) -> dict[str, Tensor]:
    """Return the subnet's parameters as slices of the supernet's, differentiable: for `torch.func.functional_call`."""
    weights = dict(supernet.named_parameters())
    return {
        name: cut(weights[part.source], part)
        for name, part in slices(supernet, config).items()
        if part.source in weights
    }


def cut(tensor: Tensor, part: Slice) -> Tensor:
    """Return the part of a supernet tensor; the tensor itself where all of it is kept."""
    for axis, kept in enumerate(part.axes):
        if kept is not None:
            tensor = tensor.index_select(axis, kept)
    return tensor


def slices(supernet: Supernet, config: Config) -> dict[str, Slice]:
    """Say for every parameter and statistic of the config's `HeatDETR` which slice of the supernet it is."""
    with torch.device("meta"):
        shapes = HeatDETR(supernet.space, config)
    cutter = _Cutter(supernet, shapes.sites)
    found: dict[str, Slice] = {}
    for site in shapes.sites:
        key = module_key(site.name)
        prefix = f"blocks.{key}"
        mixed = isinstance(supernet.get_submodule(prefix), Mixture)
        source = f"{prefix}.candidates.{site.block.kind.value}" if mixed else prefix
        found |= cutter.site(site, prefix, shapes.blocks[key], source=source)
    return found


def mixture_slices(supernet: Supernet, narrow: Supernet) -> dict[str, Slice]:
    """Say for every parameter and statistic of a narrower supernet of the same depth which slice of the wide one it is.

    `narrow` spans the same space with one width left in each stage.
    """
    cutter = _Cutter(supernet, narrow.sites)
    found: dict[str, Slice] = {}
    for site in narrow.sites:
        prefix = f"blocks.{module_key(site.name)}"
        found |= cutter.site(site, prefix, narrow.get_submodule(prefix), source=prefix)
    return found


def group_share(supernet: Supernet, stage: int) -> tuple[float, ...]:
    """Return the share of each group of 32 channels in the residual stream of a stage (1..4), largest first, sum 1."""
    strengths = _group_strengths(supernet)[Stream(f"stage{stage}")].flatten().double()
    total = strengths.sum()
    shares = strengths / total if total > 0 else torch.full_like(strengths, 1 / len(strengths))
    return tuple(shares.sort(descending=True).values.tolist())


class _Cutter:
    """Finds the indices of each axis for one narrower network, whose walk it gets."""

    def __init__(self, supernet: Supernet, narrow: Sequence[Site]) -> None:
        self.supernet = supernet
        self.full = {site.name: site for site in supernet.sites}
        self.streams = _streams(supernet.sites)
        widths = {site.stream: site.block.channels_out for site in narrow}
        self.kept = {
            stream: _kept(strengths, stream, widths[stream.name])
            for stream, strengths in _group_strengths(supernet).items()
            if stream.name in widths  # else it belongs to the prediction map of another stride
        }

    def site(self, site: Site, prefix: str, module: nn.Module, *, source: str) -> dict[str, Slice]:
        """Return the slices of one site's tensors, kept under `prefix`; the supernet keeps them under `source`."""
        axes = _axes_by_tensor(module)
        return {
            f"{prefix}.{name}": Slice(
                f"{source}.{name}",
                tuple(
                    self._indices(axis, site, full=full, size=size)
                    for axis, size, full in zip(
                        axes.get(name, ()), tensor.shape, self._shape(f"{source}.{name}"), strict=False
                    )
                ),
            )
            for name, tensor in module.state_dict().items()
        }

    def _shape(self, name: str) -> torch.Size:
        owner, _, tensor = name.rpartition(".")
        return getattr(self.supernet.get_submodule(owner), tensor).shape  # type: ignore[no-any-return]

    def _indices(self, axis: Axis, site: Site, *, full: int, size: int) -> Tensor | None:
        """Return the `size` of `full` indices that stay along an axis, or None for all of them."""
        indices = self._subset(axis, site, full=full, size=size)
        return None if len(indices) == full else indices

    def _subset(self, axis: Axis, site: Site, *, full: int, size: int) -> Tensor:
        match axis:
            case Axis.WHOLE:
                return torch.arange(full)
            case Axis.IN:
                return self._stream(site.inputs[0])
            case Axis.IN_FIRST_HALF:
                return self._stream(site.inputs[0])[:size]
            case Axis.IN_SECOND_HALF:
                return self._stream(site.inputs[0])[-size:] - full
            case Axis.SECOND_IN:
                return self._stream(site.inputs[1])
            case Axis.OUT:
                return self._stream(site.name)
            case Axis.OUT_SUBPIXELS:
                return (self._stream(site.name)[:, None] * 4 + torch.arange(4)).flatten()
            case Axis.INNER:
                return torch.arange(size)
            case Axis.XCA_INNER:
                wide = self.full[site.name].block.channels_in // XCA_HEADS
                return torch.arange(full).view(-1, wide)[:, : site.block.channels_in // XCA_HEADS].flatten()
        assert_never(axis)

    def _stream(self, name: str) -> Tensor:
        return self.kept[self.streams[name]]


def _streams(sites: Sequence[Site]) -> dict[str, Stream]:
    """Return the stream that each site writes, by site name."""
    return {IMAGE: Stream(IMAGE)} | {
        site.name: Stream(site.stream, segments=2 if site.stream in T1_STREAMS else 1) for site in sites
    }


def _kept(strengths: Tensor, stream: Stream, width: int) -> Tensor:
    """Return the channels that stay when the stream is `width` wide: its strongest groups, in ascending order.

    Strengths are those of the groups: (segments, groups).
    """
    groups = strengths.shape[1]
    best = strengths.sort(dim=1, descending=True, stable=True).indices[:, : width // HEAD_WIDTH].sort(dim=1).values
    starts = best + groups * torch.arange(stream.segments)[:, None]
    return (starts.flatten()[:, None] * stream.group + torch.arange(stream.group)).flatten()


def _group_strengths(supernet: Supernet) -> dict[Stream, Tensor]:
    """Sum |gamma| * L1 of all writers over each group of each stream: (segments, groups)."""
    streams = _streams(supernet.sites)
    total: dict[Stream, Tensor] = {}
    for site in supernet.sites:
        for layer in supernet.blocks[module_key(site.name)].modules():
            if isinstance(layer, Writer):
                stream = _target(layer.writes, site, streams)
                if stream is not None:
                    total[stream] = total.get(stream, torch.zeros(())) + _per_channel(layer)
    return {stream: sums.view(stream.segments, -1, stream.group).sum(-1) for stream, sums in total.items()}


def _target(axis: Axis, site: Site, streams: Mapping[str, Stream]) -> Stream | None:
    match axis:
        case Axis.OUT | Axis.OUT_SUBPIXELS:
            return streams[site.name]
        case Axis.IN:
            return streams[site.inputs[0]]
        case _:
            return None


def _per_channel(layer: Writer) -> Tensor:
    strength = layer.strength()
    return strength.view(-1, 4).sum(1) if layer.writes is Axis.OUT_SUBPIXELS else strength


def _axes_by_tensor(module: nn.Module) -> dict[str, tuple[Axis, ...]]:
    return {
        f"{name}.{tensor}" if name else tensor: axes
        for name, layer in module.named_modules()
        if isinstance(layer, Sliceable)
        for tensor, axes in layer.channel_axes().items()
    }
