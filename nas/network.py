"""The one walk over a HeatDETR: which block stands where, and what it reads.

Everything that needs to know a network asks here: MACs, table rows, coverage, the PyTorch modules, the exported graphs.
The data path is reading R* of the paper's equations (section 4.1 "HOD Stage", section 4.2), with resolutions:

    l0  = stem(x)                                     stride 8,  D1
    l1* = H1(l0)                                      stride 8,  D1
    l2* = H2(E2(l1*))                                 stride 16, D2      lΔ2 = SAM2(l1*,    l2*)   stride 8,  D2
    l3* = H3(E3(↓lΔ2))                                stride 32, D3      lΔ3 = SAM3(↓lΔ2,   l3*)   stride 16, D3
    l4* = H4(E4(↓lΔ3))                                stride 64, D4      lΔ4 = SAM4(↓lΔ3,   l4*)   stride 32, D4
    s1 = SCM(lΔ2) + lΔ3 ;  s2 = SCM(s1) + lΔ4 ;  s3 = G(s2) ;  s_out = G(s3 + ↑l4*)
    [t_cls, t1_reg] = split(T1(s_out)) ;  t2_reg = T2(t1_reg) ;  head(t_cls, t2_reg)
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

from pydantic import model_validator

from nas.blocks import GLOBAL_KINDS, Activation, Block, Kind, Layout
from nas.config import Config
from nas.values import Value

IMAGE = "image"
"""Name of the network's input among the values of the walk."""


class Structure(Value):
    """What all detectors of a space share; chosen once, before any supernet is trained.

    Attributes:
        classes: object classes the head tells apart.
        activation: the non-linearity everywhere but RepCNN, which keeps RepVGG's ReLU.
        context_kind: the global block of SAM4, SCM and TCM (SAM2 and SAM3 are channel-wise: paper section 4.3).
        keep: share of tokens that pass the MLP of an ATTENTION block, above 0 to 1 (paper: sparsity < 18 %).
        tcm_depths: global blocks in T1 and T2.
        anchor_px: sides of the square anchors, in input pixels.
    """

    classes: int
    activation: Activation = Activation.GELU
    context_kind: Kind = Kind.XCA
    keep: float = 1.0
    tcm_depths: tuple[int, int] = (2, 4)
    anchor_px: tuple[int, ...] = (32, 64, 128, 256, 512)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.classes < 1:
            raise ValueError(f"classes {self.classes} must be at least 1: count the classes of the data")
        if self.context_kind not in GLOBAL_KINDS:
            raise ValueError(f"context_kind {self.context_kind} must be one of {', '.join(GLOBAL_KINDS)}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep {self.keep} must be above 0 and at most 1: 1 keeps every token")
        if min(self.tcm_depths) < 0:
            raise ValueError(f"tcm_depths {self.tcm_depths} must not be negative: 0 leaves a task without blocks")
        if not self.anchor_px or min(self.anchor_px) <= 0:
            raise ValueError(f"anchor_px {self.anchor_px} must be positive sides in pixels: name at least one")
        return self


@dataclass(frozen=True)
class Site:
    """A block at its place.

    Attributes:
        name: dotted name, such as `stage3.slot4` or `sam2.global`; unique in a network.
        block: what stands there.
        inputs: names of the sites it reads (or `image`), in the block's input order.
        stage: 1..4, the highest stage whose width the block depends on (it depends on no other but the one before).
    """

    name: str
    block: Block
    inputs: tuple[str, ...]
    stage: int


class Feature(NamedTuple):
    """A value between blocks: who made it, its shape and layout."""

    name: str
    channels: int
    height: int
    width: int
    layout: Layout


def tcm_width(width: int) -> int:
    """Return the width of the TCM for a last stage of `width` channels (512 at 384): a multiple of 32."""
    return 32 * round(4 * width / 3 / 32)


def sites(structure: Structure, config: Config) -> tuple[Site, ...]:
    """Walk the network once, in an order in which every site follows its inputs."""
    walk = _Walk(structure)
    height, width = config.image
    feature = walk.stem(Feature(IMAGE, 3, height, width, Layout.SPATIAL), config.stages[0].width)
    l1 = low = walk.hod(feature, config, stage=1)
    sams = []
    for stage in (2, 3, 4):
        high = walk.hod(walk.entry(low, config.stages[stage - 1].width, stage), config, stage=stage)
        sam = walk.sam(low, high, stage)
        sams.append(sam)
        low = walk.pool(sam, stage) if stage < 4 else high
    l1, l2, l3 = sams
    s_out = walk.scm(l1, l2, l3, low)
    walk.tcm_and_head(s_out)
    return tuple(walk.sites)


class _Walk:
    """Collects sites; each method is one module of the paper and returns the feature it leaves."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.sites: list[Site] = []

    def stem(self, image: Feature, width: int) -> Feature:
        """Three 3x3 convolutions with stride 2 (paper eq. 2): stride 8."""
        return self._add("stem", Kind.STEM, (image,), width, stage=1, shrink=8)

    def entry(self, low: Feature, width: int, stage: int) -> Feature:
        """E_i: 3x3 convolution with stride 2 that opens a stage."""
        return self._add(f"stage{stage}.entry", Kind.ENTRY, (low,), width, stage=stage, shrink=2)

    def hod(self, feature: Feature, config: Config, *, stage: int) -> Feature:
        """H_i: the local blocks in their slots, then one global block."""
        chosen = config.stages[stage - 1]
        for slot, kind in enumerate(chosen.slots):
            if kind is not Kind.IDENTITY:
                feature = self._add(f"stage{stage}.slot{slot}", kind, (feature,), feature.channels, stage=stage)
        return self._global(f"stage{stage}.global", chosen.global_kind, feature, stage=stage)

    def sam(self, low: Feature, high: Feature, stage: int) -> Feature:
        """SAM_i(low, high) = G(A_lo(low) + up(A_hi(high))); A_hi is the identity for i > 2."""
        width = high.channels
        if stage == 2:
            high = self._add("sam2.align", Kind.ALIGN, (high,), width, stage=stage)
        merged = self._add(f"sam{stage}.merge", Kind.SAM, (low, high), width, stage=stage)
        kind = self.structure.context_kind if stage == 4 else Kind.XCA
        return self._global(f"sam{stage}.global", kind, merged, stage=stage)

    def pool(self, fine: Feature, stage: int) -> Feature:
        """Down: 2x2 average pooling of a SAM output, shared by the next entry and the next SAM."""
        return self._add(f"sam{stage}.pool", Kind.POOL, (fine,), fine.channels, stage=stage, shrink=2)

    def scm(self, l1: Feature, l2: Feature, l3: Feature, l4: Feature) -> Feature:
        """Eq. 4-5: combine the scales into one map at stride 32."""
        s1 = self._add("scm.down1", Kind.SCM, (l1, l2), l2.channels, stage=3, shrink=2)
        s2 = self._add("scm.down2", Kind.SCM, (s1, l3), l3.channels, stage=4, shrink=2)
        s3 = self._global("scm.global1", self.structure.context_kind, s2, stage=4)
        up = self._add("scm.up", Kind.UP, (s3, l4), s3.channels, stage=4)
        return self._global("scm.global2", self.structure.context_kind, up, stage=4)

    def tcm_and_head(self, s_out: Feature) -> Feature:
        """T1 on the shared map, T2 on its regression half, then the head on both."""
        width = tcm_width(s_out.channels)
        first, second = self.structure.tcm_depths
        t1 = self._add("tcm.project1", Kind.PROJECT, (s_out,), width, stage=4)
        for i in range(first):
            t1 = self._global(f"tcm.task1_{i}", self.structure.context_kind, t1, stage=4)
        t2 = self._add("tcm.project2", Kind.SPLIT_PROJECT, (t1,), width, stage=4)
        for i in range(second):
            t2 = self._global(f"tcm.task2_{i}", self.structure.context_kind, t2, stage=4)
        return self._add("head", Kind.HEAD, (t1, t2), self.structure.classes, stage=4)

    def _global(self, name: str, kind: Kind, feature: Feature, *, stage: int) -> Feature:
        return self._add(name, kind, (feature,), feature.channels, stage=stage)

    def _add(
        self, name: str, kind: Kind, inputs: tuple[Feature, ...], channels: int, *, stage: int, shrink: int = 1
    ) -> Feature:
        first = inputs[0]
        tokens = first.height * first.width
        sparse = kind is Kind.ATTENTION and self.structure.keep < 1
        block = Block(
            kind=kind,
            channels_in=first.channels,
            channels_out=channels,
            height=first.height,
            width=first.width,
            layouts=tuple(feature.layout for feature in inputs),
            activation=self.structure.activation if kind not in _WITHOUT_ACTIVATION else None,
            kept_tokens=max(1, tokens - int((1 - self.structure.keep) * tokens + 1e-9)) if sparse else None,
            anchor_px=self.structure.anchor_px if kind is Kind.HEAD else None,
        )
        self.sites.append(Site(name, block, tuple(feature.name for feature in inputs), stage))
        return Feature(name, channels, -(-first.height // shrink), -(-first.width // shrink), block.gives)


_WITHOUT_ACTIVATION = frozenset({Kind.REP_CNN, Kind.ENTRY, Kind.POOL, Kind.UP, Kind.HEAD})
