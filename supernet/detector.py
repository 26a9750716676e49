"""HeatDETR as a PyTorch module: the blocks of the one walk (`nas.network`), wired as it says."""

from collections.abc import Sequence
from typing import Any, assert_never

import torch
from torch import Tensor, nn

from nas.blocks import Block, Kind
from nas.config import Config
from nas.network import IMAGE, Site, Structure
from nas.space import SearchSpace
from supernet.layers.aggregation import SAM, SCM, Project, SplitProject, Up
from supernet.layers.global_attention import XCA, Attention
from supernet.layers.head import Head, RawPrediction
from supernet.layers.rep_cnn import RepCNN
from supernet.layers.stem import Align, Entry, Pool, Stem
from supernet.layers.window_attention import WindowAttention


def build_block(block: Block) -> nn.Module:
    """Return the module of a block, freshly initialised.

    Its forward takes the block's inputs in the layouts `block.layouts` and gives `block.gives`.
    """
    match block.kind:
        case Kind.STEM:
            return Stem(block)
        case Kind.ENTRY:
            return Entry(block)
        case Kind.REP_CNN:
            return RepCNN(block)
        case Kind.WMSA | Kind.SWMSA:
            return WindowAttention(block)
        case Kind.IDENTITY:
            return nn.Identity()
        case Kind.XCA:
            return XCA(block)
        case Kind.ATTENTION | Kind.SPARSE_ATTENTION:
            return Attention(block)
        case Kind.POOL:
            return Pool(block)
        case Kind.ALIGN:
            return Align(block)
        case Kind.SAM:
            return SAM(block)
        case Kind.SCM:
            return SCM(block)
        case Kind.UP:
            return Up(block)
        case Kind.PROJECT:
            return Project(block)
        case Kind.SPLIT_PROJECT:
            return SplitProject(block)
        case Kind.HEAD:
            return Head(block)
    assert_never(block.kind)


def with_structure(detector: "HeatDETR", space: SearchSpace, structure: Structure) -> "HeatDETR":
    """Return a detector of a space, with its weights copied into the space's other structure, in evaluation mode.

    The structures may differ in their layout alone. A detector of this structure is returned itself.
    """
    if structure == space.structure:
        return detector
    other = space.model_copy(update={"structure": structure})
    with torch.random.fork_rng(devices=()):
        twin = HeatDETR(other, detector.config.model_copy(update={"space": other.id}))
    twin.load_state_dict(detector.state_dict())
    return twin.eval()


def module_key(site: str) -> str:
    """Return the name of a site among submodules, which may hold no dot."""
    return site.replace(".", "_")


def run_sites(sites: Sequence[Site], blocks: nn.ModuleDict, images: Tensor) -> Any:  # noqa: ANN401 - what a block gives
    """Return what the last of some sites gives for images (B, 3, H, W)."""
    values: dict[str, Any] = {IMAGE: images}
    for site in sites:
        values[site.name] = blocks[module_key(site.name)](*(values[name] for name in site.inputs))
    return values[sites[-1].name]


class HeatDETR(nn.Module):
    """One detector of a search space.

    Attributes:
        space: that search space.
        config: its architecture.
        sites: the walk it was built from, in execution order.
        blocks: the module of each site.
    """

    def __init__(self, space: SearchSpace, config: Config) -> None:
        super().__init__()
        self.space = space
        self.config = space.check(config)
        self.sites: tuple[Site, ...] = space.sites(config)
        self.blocks = nn.ModuleDict({module_key(site.name): build_block(site.block) for site in self.sites})

    def forward(self, images: Tensor) -> RawPrediction:
        """Take images (B, 3, H, W), RGB in [0, 1], of the config's size.

        The fused detector gives boxes (B, N, 4), x1 y1 x2 y2 in input pixels, and scores (B, N, classes) instead.
        """
        prediction: RawPrediction = run_sites(self.sites, self.blocks, images)
        return prediction

    @property
    def head(self) -> Head:
        """The detection head (training form), which holds the anchors."""
        head = self.blocks[module_key(self.sites[-1].name)]
        if not isinstance(head, Head):
            raise TypeError("a fused detector decodes its boxes itself: ask the unfused one for anchors")
        return head
