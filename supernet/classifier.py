"""The backbone of a detector with a classifier on top, for pretraining: GAP(l4*) -> FC (specification section 5)."""

from collections.abc import Sequence

from torch import Tensor, nn

from nas.config import Config
from nas.network import Site
from nas.space import SearchSpace
from supernet.detector import build_block, module_key, run_sites
from supernet.layers.layout import to_tokens

BACKBONE_END = "stage4.global"
"""The site that gives l4*."""


class Classifier(nn.Module):
    """Tells images apart by the last map of the HOD stages.

    Blocks have the names that they have in `HeatDETR`, so that a detector can take their weights.

    Attributes:
        config: the architecture of the detector.
        sites: of its walk, those that l4* depends on: the stages with SAM2 and SAM3 between them.
        blocks: the module of each site.
        classify: from the mean over the map to the classes.
    """

    def __init__(self, space: SearchSpace, config: Config, classes: int) -> None:
        super().__init__()
        self.config = space.check(config)
        self.sites = backbone_sites(space.sites(config))
        self.blocks = nn.ModuleDict({module_key(site.name): build_block(site.block) for site in self.sites})
        last = self.sites[-1].block
        self.classify = nn.Linear(last.channels_out, classes)
        nn.init.trunc_normal_(self.classify.weight, std=0.02)
        nn.init.zeros_(self.classify.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Take images (B, 3, H, W), RGB in [0, 1], of the config's size; return the logits (B, classes)."""
        last = run_sites(self.sites, self.blocks, images)
        logits: Tensor = self.classify(to_tokens(last, self.sites[-1].block.gives).mean(dim=1))
        return logits


def backbone_sites(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Return the sites that l4* depends on, itself the last, in the order of the walk."""
    needed, found = {BACKBONE_END}, []
    for site in reversed(sites):
        if site.name in needed:
            needed.update(site.inputs)
            found.append(site)
    return tuple(reversed(found))
