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

With a prediction map at stride 16 the SCM stops one level earlier, and everything after it is as wide as stage 3 asks:

    s1 = SCM(lΔ2) + lΔ3 ;  s3 = G(s1) ;  s_out = G(s3 + ↑A_hi(lΔ4))
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from pydantic import model_validator

from nas.blocks import GLOBAL_KINDS, LINEAR_KINDS, MLP_RATIO, STEM_DIVISORS, Activation, Block, Kind, Layout, Upsample
from nas.config import Config
from nas.values import Value

IMAGE = "image"
"""Name of the network's input among the values of the walk."""

TCM_STREAMS = ("t1", "t2")
"""Streams of the task-coupled module."""


STEMS = ((2, 2), (2, 1), (1, 1))
"""Divisors of a stem that is wider than in reading R*."""


class Structure(Value):
    """What all detectors of a space share; chosen once, before any supernet is trained.

    The paper leaves most of it open. Where a field is None, the product reads it as reading R* of the specification
    does, whose MACs come nearest to those that Table 3 prints; a value that R* has already is refused, so that equal
    structures have equal identities.

    Attributes:
        classes: object classes the head tells apart.
        activation: the non-linearity everywhere but RepCNN, which keeps RepVGG's ReLU.
        context_kind: the global block of SAM4, SCM and TCM (SAM2 and SAM3 are channel-wise: paper section 4.3).
        keep: share of tokens that pass the MLP of an ATTENTION block, above 0 to 1 (paper: sparsity < 18 %).
        tcm_depths: global blocks in T1 and T2.
        anchor_px: sides of the square anchors, in input pixels.
        stride: input pixels between two cells of the prediction map, 16; None for 32. At 16 the SCM stops one level
            earlier, and small objects are seen that stride 32 loses.
        stem_divisors: D1 over the channels of the stem's first two convolutions; None for 4 and 2.
        entry_kernel: side of the convolution that opens a stage, 2 (patch merging); None for 3.
        align_kernel: side of the convolutions that align widths in the SAMs (SCM at stride 16), 1; None for 3.
        project_kernel: side of the convolutions between different widths in the SCM, 1; None for 3.
        upsample: how coarse maps are enlarged in SAM and SCM, `nearest`; None for the deconvolution.
        key_width: query and key channels per head of window attention, 32 (Swin); None for 16.
        window_mlp: hidden channels per channel in the MLPs of window attention; None for 4.
        channel_mlp: the same in channel-wise attention outside the TCM.
        token_mlp: the same in token attention outside the TCM.
        tcm_mlp: the same in the global blocks of the TCM.
        scm_mlp: the same in the down-sampling attention of the SCM.
        linear_layout: the layout that Linears work in, spatial (as 1x1 convolutions, every map stays so); None for
            tokens. Neither weights nor results depend on it.
    """

    classes: int
    activation: Activation = Activation.GELU
    context_kind: Kind = Kind.XCA
    keep: float = 1.0
    tcm_depths: tuple[int, int] = (2, 4)
    anchor_px: tuple[int, ...] = (32, 64, 128, 256, 512)
    stride: Literal[16] | None = None
    stem_divisors: tuple[int, int] | None = None
    entry_kernel: Literal[2] | None = None
    align_kernel: Literal[1] | None = None
    project_kernel: Literal[1] | None = None
    upsample: Literal[Upsample.NEAREST] | None = None
    key_width: Literal[32] | None = None
    window_mlp: int | None = None
    channel_mlp: int | None = None
    token_mlp: int | None = None
    tcm_mlp: int | None = None
    scm_mlp: int | None = None
    linear_layout: Literal[Layout.SPATIAL] | None = None

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
        if self.stem_divisors is not None and self.stem_divisors not in STEMS:
            raise ValueError(f"stem_divisors {self.stem_divisors} must be one of {STEMS}, or None for {STEM_DIVISORS}")
        for name in ("window_mlp", "channel_mlp", "token_mlp", "tcm_mlp", "scm_mlp"):
            ratio = getattr(self, name)
            if ratio is not None and (ratio == MLP_RATIO or not 1 <= ratio <= 8):
                raise ValueError(f"{name} {ratio} must be 1 to 8, and None for {MLP_RATIO}: change it")
        return self


@dataclass(frozen=True)
class Site:
    """A block at its place.

    Attributes:
        name: dotted name, such as `stage3.slot4` or `sam2.global`; unique in a network.
        block: what stands there.
        inputs: names of the sites it reads (or `image`), in the block's input order.
        stream: the channels it writes, `stage1`..`stage4`, `t1`, `t2`, `head`; sites of one stream write the same ones.
        stage: 1..4, the highest stage whose width the block depends on (it depends on no other but the one before).
    """

    name: str
    block: Block
    inputs: tuple[str, ...]
    stream: str
    stage: int


class Feature(NamedTuple):
    """A value between blocks: who made it, its channels, shape and layout."""

    name: str
    stream: str
    channels: int
    height: int
    width: int
    layout: Layout


def tcm_width(width: int) -> int:
    """Return the width of the TCM behind a map of `width` channels (512 at 384): a multiple of 32."""
    return 32 * round(4 * width / 3 / 32)


def sites(structure: Structure, config: Config) -> tuple[Site, ...]:
    """Walk the network once, in an order in which every site follows its inputs."""
    walk = _Walk(structure)
    height, width = config.image
    feature = walk.stem(Feature(IMAGE, IMAGE, 3, height, width, Layout.SPATIAL), config.stages[0].width)
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
        return self._add("stem", Kind.STEM, (image,), width, stream="stage1", stage=1, shrink=8)

    def entry(self, low: Feature, width: int, stage: int) -> Feature:
        """E_i: convolution with stride 2 that opens a stage."""
        name, stream = f"stage{stage}.entry", f"stage{stage}"
        return self._add(name, Kind.ENTRY, (low,), width, stream=stream, stage=stage, shrink=2)

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
        merged = self._add(f"sam{stage}.merge", Kind.SAM, (low, high), width, stream=high.stream, stage=stage)
        kind = self.structure.context_kind if stage == 4 else Kind.XCA
        return self._global(f"sam{stage}.global", kind, merged, stage=stage)

    def pool(self, fine: Feature, stage: int) -> Feature:
        """Down: 2x2 average pooling of a SAM output, shared by the next entry and the next SAM."""
        return self._add(f"sam{stage}.pool", Kind.POOL, (fine,), fine.channels, stage=stage, shrink=2)

    def scm(self, l1: Feature, l2: Feature, l3: Feature, l4: Feature) -> Feature:
        """Eq. 4-5: combine the scales into one map at stride 32, or one level earlier at stride 16."""
        kind = self.structure.context_kind
        combined = self._add("scm.down1", Kind.SCM, (l1, l2), l2.channels, stream=l2.stream, stage=3, shrink=2)
        if self.structure.stride is None:
            fine, stage = combined, 4
            combined = self._add("scm.down2", Kind.SCM, (fine, l3), l3.channels, stream=l3.stream, stage=4, shrink=2)
            coarse = l4
        else:  # l3 has l4 in it already, through SAM4
            stage = 3
            coarse = self._add("scm.align", Kind.ALIGN, (l3,), combined.channels, stream=combined.stream, stage=4)
        s3 = self._global("scm.global1", kind, combined, stage=stage)
        up = self._add("scm.up", Kind.UP, (s3, coarse), s3.channels, stage=stage)
        return self._global("scm.global2", kind, up, stage=stage)

    def tcm_and_head(self, s_out: Feature) -> Feature:
        """T1 on the shared map, T2 on its regression half, then the head on both."""
        width, kind = tcm_width(s_out.channels), self.structure.context_kind
        first, second = self.structure.tcm_depths
        stage = 4 if self.structure.stride is None else 3
        t1 = self._add("tcm.project1", Kind.PROJECT, (s_out,), width, stream="t1", stage=stage)
        for i in range(first):
            t1 = self._global(f"tcm.task1_{i}", kind, t1, stage=stage)
        t2 = self._add("tcm.project2", Kind.SPLIT_PROJECT, (t1,), width, stream="t2", stage=stage)
        for i in range(second):
            t2 = self._global(f"tcm.task2_{i}", kind, t2, stage=stage)
        return self._add("head", Kind.HEAD, (t1, t2), self.structure.classes, stream="head", stage=stage)

    def _global(self, name: str, kind: Kind, feature: Feature, *, stage: int) -> Feature:
        return self._add(name, kind, (feature,), feature.channels, stage=stage)

    def _add(
        self,
        name: str,
        kind: Kind,
        inputs: tuple[Feature, ...],
        channels: int,
        *,
        stream: str | None = None,
        stage: int,
        shrink: int = 1,
    ) -> Feature:
        first = inputs[0]
        stream = stream or first.stream
        block = Block(
            kind=kind,
            channels_in=first.channels,
            channels_out=channels,
            height=first.height,
            width=first.width,
            layouts=tuple(feature.layout for feature in inputs),
            activation=self.structure.activation if kind not in _WITHOUT_ACTIVATION else None,
            kept_tokens=self._kept(first.height * first.width) if kind is Kind.ATTENTION else None,
            linear_layout=self.structure.linear_layout if kind in LINEAR_KINDS else None,
            **self._deviations(kind, in_tcm=stream in TCM_STREAMS, widens=first.channels != channels),
        )
        self.sites.append(Site(name, block, tuple(feature.name for feature in inputs), stream, stage))
        return Feature(name, stream, channels, -(-first.height // shrink), -(-first.width // shrink), block.gives)

    def _kept(self, tokens: int) -> int | None:
        """Return the tokens that pass the MLP of token attention, None for all."""
        keep = self.structure.keep
        return max(1, tokens - int((1 - keep) * tokens + 1e-9)) if keep < 1 else None

    def _deviations(self, kind: Kind, *, in_tcm: bool, widens: bool) -> dict[str, Any]:
        """Return what of the structure shows in a block of this kind; None where it is as in reading R*."""
        has = self.structure
        match kind:
            case Kind.STEM:
                return {"stem_divisors": has.stem_divisors}
            case Kind.ENTRY:
                return {"kernel": has.entry_kernel}
            case Kind.ALIGN:
                return {"kernel": has.align_kernel}
            case Kind.SAM:
                return {"kernel": has.align_kernel, "upsample": has.upsample}
            case Kind.UP:
                return {"upsample": has.upsample}
            case Kind.SCM:
                return {"kernel": has.project_kernel if widens else None, "mlp_ratio": has.scm_mlp}
            case Kind.WMSA | Kind.SWMSA:
                return {"key_width": has.key_width, "mlp_ratio": has.window_mlp}
            case Kind.XCA:
                return {"mlp_ratio": has.tcm_mlp if in_tcm else has.channel_mlp}
            case Kind.ATTENTION:
                return {"mlp_ratio": has.tcm_mlp if in_tcm else has.token_mlp}
            case Kind.HEAD:
                return {"anchor_px": has.anchor_px, "stride": has.stride}
            case _:
                return {}


_WITHOUT_ACTIVATION = frozenset({Kind.REP_CNN, Kind.ENTRY, Kind.POOL, Kind.UP, Kind.HEAD})
