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

What only such a map has stands under `scm16`, `tcm16` and `head16`: a supernet may hold both.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from pydantic import model_validator

from nas.blocks import (
    GLOBAL_KINDS,
    HEAD_WIDTH,
    LINEAR_KINDS,
    MLP_RATIO,
    STEM_DIVISORS,
    Activation,
    Block,
    Kind,
    Layout,
    Upsample,
)
from nas.config import Config
from nas.values import Value

IMAGE = "image"
"""Name of the network's input among the values of the walk."""

T1_STREAMS, T2_STREAMS = ("t1", "t1_16"), ("t2", "t2_16")
"""Streams of the task-coupled module, before prediction maps at stride 32 and 16."""

Module = Literal["sam2", "sam3", "sam4", "scm", "tcm"]
"""A module outside the stages that has global blocks."""

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
        context_kind: the global block of SAM4, SCM and TCM.
        sam2_kind: that of SAM2; None for channel-wise attention (paper section 4.3).
        sam3_kind: that of SAM3, likewise.
        sam4_kind: that of SAM4; None for `context_kind`.
        scm_kind: that of the SCM, likewise.
        tcm_kind: that of the TCM, likewise.
        keep: share of tokens that pass the MLP of a SPARSE_ATTENTION block (paper: sparsity < 18 %); 1 in a space
            without such blocks.
        tcm_depths: global blocks in T1 and T2.
        anchor_px: sides of the square anchors, in input pixels, for a prediction map at stride 32; at 16 they are half
            as long.
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
        tcm_width: channels of the TCM, a multiple of 32; None for about 4/3 of those of the map it reads.
        sam_width: `low` for SAM_i as wide as stage i-1, whose resolution it has; None for as wide as stage i. Entries
            then depend on stages two apart, so a space may have it only where no width varies.
        linear_layout: the layout that Linears work in, spatial (as 1x1 convolutions, every map stays so); None for
            tokens. Neither weights nor results depend on it.
    """

    classes: int
    activation: Activation = Activation.GELU
    context_kind: Kind = Kind.XCA
    sam2_kind: Kind | None = None
    sam3_kind: Kind | None = None
    sam4_kind: Kind | None = None
    scm_kind: Kind | None = None
    tcm_kind: Kind | None = None
    keep: float = 1.0
    tcm_depths: tuple[int, int] = (2, 4)
    anchor_px: tuple[int, ...] = (32, 64, 128, 256, 512)
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
    tcm_width: int | None = None
    sam_width: Literal["low"] | None = None
    linear_layout: Literal[Layout.SPATIAL] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.classes < 1:
            raise ValueError(f"classes {self.classes} must be at least 1: count the classes of the data")
        named = {f"{module}_kind": getattr(self, f"{module}_kind") for module in self._usual_kinds}
        for name, kind in (("context_kind", self.context_kind), *named.items()):
            if kind is not None and kind not in GLOBAL_KINDS:
                raise ValueError(f"{name} {kind} must be one of {', '.join(GLOBAL_KINDS)}")
        for module, usual in self._usual_kinds.items():
            if named[f"{module}_kind"] is usual:
                raise ValueError(f"{module}_kind is {usual} without being named: leave it out")
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
        if self.tcm_width is not None and (self.tcm_width <= 0 or self.tcm_width % HEAD_WIDTH):
            raise ValueError(
                f"tcm_width {self.tcm_width} must be a positive multiple of {HEAD_WIDTH}, as heads are wide"
            )
        return self

    def global_kind(self, module: Module) -> Kind:
        """Return the kind of the global blocks in a module outside the stages."""
        kind: Kind | None = getattr(self, f"{module}_kind")
        return kind or self._usual_kinds[module]

    @property
    def has_sparse_attention(self) -> bool:
        """Whether a module outside the stages leaves tokens out."""
        return Kind.SPARSE_ATTENTION in map(self.global_kind, self._usual_kinds)

    @property
    def _usual_kinds(self) -> dict[Module, Kind]:
        """The kinds of global blocks that are not named."""
        context = self.context_kind
        return {"sam2": Kind.XCA, "sam3": Kind.XCA, "sam4": context, "scm": context, "tcm": context}


@dataclass(frozen=True)
class Site:
    """A block at its place.

    Attributes:
        name: dotted name, such as `stage3.slot4` or `sam2.global`; unique in a network.
        block: what stands there.
        inputs: names of the sites it reads (or `image`), in the block's input order.
        stream: the channels it writes, such as `stage1`, `t1`, `head`; sites of one stream write the same ones.
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
    walk = _Walk(structure, stride=config.stride)
    height, width = config.image
    feature = walk.stem(Feature(IMAGE, IMAGE, 3, height, width, Layout.SPATIAL), config.stages[0].width)
    l1 = low = walk.hod(feature, config, stage=1)
    sams = []
    for stage in (2, 3, 4):
        high = walk.hod(walk.entry(low, config.stages[stage - 1].width, stage), config, stage=stage)
        sam = walk.sam(low, high, stage, below=config.stages[stage - 2].width)
        sams.append(sam)
        low = walk.pool(sam, stage) if stage < 4 else high
    l1, l2, l3 = sams
    s_out = walk.scm(l1, l2, l3, low)
    walk.tcm_and_head(s_out)
    return tuple(walk.sites)


class _Walk:
    """Collects sites; each method is one module of the paper and returns the feature it leaves."""

    def __init__(self, structure: Structure, *, stride: Literal[16] | None) -> None:
        self.structure, self.stride = structure, stride
        self.at = "" if stride is None else str(stride)
        """What the names of the sites behind the shared part of the SCM have in them."""
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

    def sam(self, low: Feature, high: Feature, stage: int, *, below: int) -> Feature:
        """SAM_i(low, high) = G(A_lo(low) + up(A_hi(high))), as wide as stage i; A_hi is the identity for i > 2.

        Where it is as wide as stage i-1 (`Structure.sam_width`), A_hi narrows, and A_lo is the identity between equal
        widths (specification section 4.4).
        """
        is_low = self.structure.sam_width == "low"
        width, stream = (below, f"stage{stage - 1}") if is_low else (high.channels, high.stream)
        if stage == 2 or high.channels != width:
            high = self._add(f"sam{stage}.align", Kind.ALIGN, (high,), width, stream=stream, stage=stage)
        merge = Kind.UP if is_low and low.channels == width else Kind.SAM
        merged = self._add(f"sam{stage}.merge", merge, (low, high), width, stream=stream, stage=stage)
        kind = self.structure.global_kind(_SAMS[stage])
        return self._global(f"sam{stage}.global", kind, merged, stage=stage)

    def pool(self, fine: Feature, stage: int) -> Feature:
        """Down: 2x2 average pooling of a SAM output, shared by the next entry and the next SAM."""
        return self._add(f"sam{stage}.pool", Kind.POOL, (fine,), fine.channels, stage=stage, shrink=2)

    def scm(self, l1: Feature, l2: Feature, l3: Feature, l4: Feature) -> Feature:
        """Eq. 4-5: combine the scales into one map at stride 32, or one level earlier at stride 16.

        Where l3 is not as wide as l4 (`Structure.sam_width`), their sum is brought to the width of l4 (P3).
        """
        kind, name = self.structure.global_kind("scm"), f"scm{self.at}"
        combined = self._add("scm.down1", Kind.SCM, (l1, l2), l2.channels, stream=l2.stream, stage=3, shrink=2)
        if self.stride is None:
            fine, stage = combined, 4
            combined = self._add("scm.down2", Kind.SCM, (fine, l3), l3.channels, stream=l3.stream, stage=4, shrink=2)
            coarse = l4
            if combined.channels != l4.channels:
                combined = self._add(f"{name}.align", Kind.ALIGN, (combined,), l4.channels, stream=l4.stream, stage=4)
        else:  # l3 has l4 in it already, through SAM4
            stage = 3
            coarse = self._add(f"{name}.align", Kind.ALIGN, (l3,), combined.channels, stream=combined.stream, stage=4)
        s3 = self._global(f"{name}.global1", kind, combined, stage=stage)
        up = self._add(f"{name}.up", Kind.UP, (s3, coarse), s3.channels, stage=stage)
        return self._global(f"{name}.global2", kind, up, stage=stage)

    def tcm_and_head(self, s_out: Feature) -> Feature:
        """T1 on the shared map, T2 on its regression half, then the head on both."""
        width = self.structure.tcm_width or tcm_width(s_out.channels)
        kind, name = self.structure.global_kind("tcm"), f"tcm{self.at}"
        first, second = self.structure.tcm_depths
        at_16 = self.stride is not None
        stage = 3 if at_16 else 4
        t1 = self._add(f"{name}.project1", Kind.PROJECT, (s_out,), width, stream=T1_STREAMS[at_16], stage=stage)
        for i in range(first):
            t1 = self._global(f"{name}.task1_{i}", kind, t1, stage=stage)
        t2 = self._add(f"{name}.project2", Kind.SPLIT_PROJECT, (t1,), width, stream=T2_STREAMS[at_16], stage=stage)
        for i in range(second):
            t2 = self._global(f"{name}.task2_{i}", kind, t2, stage=stage)
        head = f"head{self.at}"
        return self._add(head, Kind.HEAD, (t1, t2), self.structure.classes, stream=head, stage=stage)

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
            kept_tokens=self._kept(first.height * first.width) if kind is Kind.SPARSE_ATTENTION else None,
            linear_layout=self.structure.linear_layout if kind in LINEAR_KINDS else None,
            **self._deviations(kind, in_tcm=stream in T1_STREAMS + T2_STREAMS, widens=first.channels != channels),
        )
        self.sites.append(Site(name, block, tuple(feature.name for feature in inputs), stream, stage))
        return Feature(name, stream, channels, -(-first.height // shrink), -(-first.width // shrink), block.gives)

    def _kept(self, tokens: int) -> int:
        """Return the tokens that pass the MLP of sparse token attention."""
        return max(1, tokens - int((1 - self.structure.keep) * tokens + 1e-9))

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
            case Kind.ATTENTION | Kind.SPARSE_ATTENTION:
                return {"mlp_ratio": has.tcm_mlp if in_tcm else has.token_mlp}
            case Kind.HEAD:
                halved = tuple(max(1, side // 2) for side in has.anchor_px)
                return {"anchor_px": has.anchor_px if self.stride is None else halved, "stride": self.stride}
            case _:
                return {}


_SAMS: dict[int, Module] = {2: "sam2", 3: "sam3", 4: "sam4"}

_WITHOUT_ACTIVATION = frozenset({Kind.REP_CNN, Kind.ENTRY, Kind.POOL, Kind.UP, Kind.HEAD})
