"""Check (d): every tensor has the shape of the specification's table 1.1, at every input size it names.

The walk (`nas.network`) rounds odd sides up. The modules do not: they have no crop behind an up-sampling, and a space
admits only input sides that are multiples of 64, to which images are padded (section 6). So 800x1333 and 320x480 are
checked by the arithmetic alone, and the modules at the sizes that can be built, 320x480 padded among them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from nas.blocks import Kind, Layout
from nas.config import Config
from nas.named import named_config, named_space
from nas.network import IMAGE, Site, sites
from nas.space import SearchSpace
from supernet.detector import HeatDETR
from supernet.layers.head import RawPrediction
from supernet.layers.stem import Stem

Shape = tuple[int, int, int]
"""Channels, height, width."""

MAPS = {
    (800, 1333): {8: (100, 167), 16: (50, 84), 32: (25, 42), 64: (13, 21)},
    (832, 1344): {8: (104, 168), 16: (52, 84), 32: (26, 42), 64: (13, 21)},
    (640, 640): {8: (80, 80), 16: (40, 40), 32: (20, 20), 64: (10, 10)},
    (448, 448): {8: (56, 56), 16: (28, 28), 32: (14, 14), 64: (7, 7)},
    (320, 480): {8: (40, 60), 16: (20, 30), 32: (10, 15), 64: (5, 8)},
    (320, 512): {8: (40, 64), 16: (20, 32), 32: (10, 16), 64: (5, 8)},
}
"""Height and width of the map at each stride."""

ANCHORS = {
    32: {
        (800, 1333): 5250,
        (832, 1344): 5460,
        (640, 640): 2000,
        (448, 448): 980,
        (320, 480): 750,
        (320, 512): 800,
    },
    16: {
        (800, 1333): 21000,
        (832, 1344): 21840,
        (640, 640): 8000,
        (448, 448): 3920,
        (320, 480): 3000,
        (320, 512): 3200,
    },
}
"""Anchors by prediction stride: five on each cell."""

# HeatDETR-tiny, D = (128, 128, 256, 384): channels and stride at which each site writes, in the order of the data path.
HOD_AND_SAM = {
    "stem": (128, 8),
    "stage1.slot0": (128, 8),
    "stage1.global": (128, 8),  # l1*
    "stage2.entry": (128, 16),
    "stage2.slot0": (128, 16),
    "stage2.global": (128, 16),  # l2*
    "sam2.align": (128, 16),
    "sam2.merge": (128, 8),
    "sam2.global": (128, 8),  # lΔ2 = l1
    "sam2.pool": (128, 16),
    "stage3.entry": (256, 32),
    **{f"stage3.slot{slot}": (256, 32) for slot in range(6)},
    "stage3.global": (256, 32),  # l3*
    "sam3.merge": (256, 16),
    "sam3.global": (256, 16),  # lΔ3 = l2
    "sam3.pool": (256, 32),
    "stage4.entry": (384, 64),
    "stage4.slot0": (384, 64),
    "stage4.global": (384, 64),  # l4* = l4
    "sam4.merge": (384, 32),
    "sam4.global": (384, 32),  # lΔ4 = l3
}

AFTER_THEM = {
    32: {
        "scm.down1": (256, 16),  # s1
        "scm.down2": (384, 32),  # s2
        "scm.global1": (384, 32),  # s3
        "scm.up": (384, 32),
        "scm.global2": (384, 32),  # s_out
        "tcm.project1": (512, 32),
        "tcm.task1_0": (512, 32),
        "tcm.task1_1": (512, 32),  # t_cls and t1_reg, 256 each
        "tcm.project2": (512, 32),
        **{f"tcm.task2_{number}": (512, 32) for number in range(4)},  # t2_reg
    },
    16: {
        "scm.down1": (256, 16),  # s1
        "scm16.align": (256, 32),
        "scm16.global1": (256, 16),  # s3
        "scm16.up": (256, 16),
        "scm16.global2": (256, 16),  # s_out
        "tcm16.project1": (352, 16),
        "tcm16.task1_0": (352, 16),
        "tcm16.task1_1": (352, 16),  # t_cls and t1_reg, 176 each
        "tcm16.project2": (352, 16),
        **{f"tcm16.task2_{number}": (352, 16) for number in range(4)},  # t2_reg
    },
}

# What each site reads: the equations of section 1.2, written out for HeatDETR-tiny.
WIRED_HOD_AND_SAM = {
    "stem": ("image",),  # l0 = stem(x)
    "stage1.slot0": ("stem",),  # l1* = H1(l0)
    "stage1.global": ("stage1.slot0",),
    "stage2.entry": ("stage1.global",),  # l2* = H2(E2(l1*))
    "stage2.slot0": ("stage2.entry",),
    "stage2.global": ("stage2.slot0",),
    "sam2.align": ("stage2.global",),  # lΔ2 = G(A_lo(l1*) + up(A_hi(l2*)))
    "sam2.merge": ("stage1.global", "sam2.align"),
    "sam2.global": ("sam2.merge",),
    "sam2.pool": ("sam2.global",),  # down(lΔ2)
    "stage3.entry": ("sam2.pool",),  # l3* = H3(E3(down(lΔ2)))
    "stage3.slot0": ("stage3.entry",),
    "stage3.slot1": ("stage3.slot0",),
    "stage3.slot2": ("stage3.slot1",),
    "stage3.slot3": ("stage3.slot2",),
    "stage3.slot4": ("stage3.slot3",),
    "stage3.slot5": ("stage3.slot4",),
    "stage3.global": ("stage3.slot5",),
    "sam3.merge": ("sam2.pool", "stage3.global"),  # lΔ3 = G(A_lo(down(lΔ2)) + up(l3*))
    "sam3.global": ("sam3.merge",),
    "sam3.pool": ("sam3.global",),  # down(lΔ3)
    "stage4.entry": ("sam3.pool",),  # l4* = H4(E4(down(lΔ3)))
    "stage4.slot0": ("stage4.entry",),
    "stage4.global": ("stage4.slot0",),
    "sam4.merge": ("sam3.pool", "stage4.global"),  # lΔ4 = G(A_lo(down(lΔ3)) + up(l4*))
    "sam4.global": ("sam4.merge",),
}

WIRED_AFTER_THEM = {
    32: {
        "scm.down1": ("sam2.global", "sam3.global"),  # s1 = P1(DA(l1)) + l2, l1 = lΔ2, l2 = lΔ3
        "scm.down2": ("scm.down1", "sam4.global"),  # s2 = P2(DA(s1)) + l3, l3 = lΔ4
        "scm.global1": ("scm.down2",),  # s3 = G(s2)
        "scm.up": ("scm.global1", "stage4.global"),  # s_out = G(s3 + up(l4)), l4 = l4*
        "scm.global2": ("scm.up",),
        "tcm.project1": ("scm.global2",),  # [t_cls, t1_reg] = split(T1(s_out))
        "tcm.task1_0": ("tcm.project1",),
        "tcm.task1_1": ("tcm.task1_0",),
        "tcm.project2": ("tcm.task1_1",),  # t2_reg = T2(t1_reg), which is the second half
        "tcm.task2_0": ("tcm.project2",),
        "tcm.task2_1": ("tcm.task2_0",),
        "tcm.task2_2": ("tcm.task2_1",),
        "tcm.task2_3": ("tcm.task2_2",),
        "head": ("tcm.task1_1", "tcm.task2_3"),  # head(t_cls, t2_reg)
    },
    16: {
        "scm.down1": ("sam2.global", "sam3.global"),  # s1 = P1(DA(l1)) + l2
        "scm16.align": ("sam4.global",),
        "scm16.global1": ("scm.down1",),  # s3 = G(s1)
        "scm16.up": ("scm16.global1", "scm16.align"),  # s_out = G(s3 + up(A_hi(l3)))
        "scm16.global2": ("scm16.up",),
        "tcm16.project1": ("scm16.global2",),
        "tcm16.task1_0": ("tcm16.project1",),
        "tcm16.task1_1": ("tcm16.task1_0",),
        "tcm16.project2": ("tcm16.task1_1",),
        "tcm16.task2_0": ("tcm16.project2",),
        "tcm16.task2_1": ("tcm16.task2_0",),
        "tcm16.task2_2": ("tcm16.task2_1",),
        "tcm16.task2_3": ("tcm16.task2_2",),
        "head16": ("tcm16.task1_1", "tcm16.task2_3"),
    },
}

HEAD = {32: "head", 16: "head16"}
STRIDES = pytest.mark.parametrize("stride", [32, 16])


def tiny_at(image: tuple[int, int], *, stride: int) -> tuple[SearchSpace, Config]:
    """Return HeatDETR-tiny with its prediction map at a stride; its space has the input size where one may."""
    space = named_space("heatdetr", classes=80)
    if stride == 16:
        space = space.model_copy(update={"strides": (16,)})
    if not any(side % 64 for side in image):
        space = space.model_copy(update={"images": (image,)})
    return space, named_config("heatdetr-tiny", space, image=image)


def expected_shapes(image: tuple[int, int], *, stride: int) -> dict[str, Shape]:
    table = HOD_AND_SAM | AFTER_THEM[stride]
    return {name: (channels, *MAPS[image][at]) for name, (channels, at) in table.items()}


def walked(image: tuple[int, int], *, stride: int) -> tuple[Site, ...]:
    space, config = tiny_at(image, stride=stride)
    return sites(space.structure, config)


@STRIDES
def test_every_site_is_wired_as_the_equations_say(stride: int) -> None:
    wired = {site.name: site.inputs for site in walked((832, 1344), stride=stride)}
    assert wired == WIRED_HOD_AND_SAM | WIRED_AFTER_THEM[stride]


@STRIDES
@pytest.mark.parametrize("image", MAPS, ids=str)
def test_every_site_reads_what_the_table_says_its_inputs_are(image: tuple[int, int], stride: int) -> None:
    written = expected_shapes(image, stride=stride)
    read = {site.inputs[0]: (site.block.channels_in, site.block.height, site.block.width)
            for site in walked(image, stride=stride)}  # fmt: skip
    assert read.pop(IMAGE) == (3, *image)
    assert read == {name: written[name] for name in read}
    # What no site reads first is read second.
    assert written.keys() - read.keys() <= {site.inputs[-1] for site in walked(image, stride=stride)}


@STRIDES
@pytest.mark.parametrize("image", MAPS, ids=str)
def test_every_site_writes_what_the_table_says(image: tuple[int, int], stride: int) -> None:
    def written(site: Site) -> Shape:
        shrink = {Kind.STEM: 8, Kind.ENTRY: 2, Kind.POOL: 2, Kind.SCM: 2}.get(site.block.kind, 1)
        return (site.block.channels_out, -(-site.block.height // shrink), -(-site.block.width // shrink))

    *body, head = walked(image, stride=stride)
    assert {site.name: written(site) for site in body} == expected_shapes(image, stride=stride)
    assert head.block.tokens * len(head.block.anchor_px or ()) == ANCHORS[stride][image]
    assert (head.name, head.block.channels_out) == (HEAD[stride], 80)
    assert head.block.anchor_px == {32: (32, 64, 128, 256, 512), 16: (16, 32, 64, 128, 256)}[stride]


@STRIDES
@pytest.mark.parametrize("image", MAPS, ids=str)
def test_second_inputs_are_coarser_by_two_and_as_wide_as_the_result(image: tuple[int, int], stride: int) -> None:
    shapes = expected_shapes(image, stride=stride)
    joined = {site.name: site for site in walked(image, stride=stride) if len(site.inputs) == 2}
    for name in joined.keys() - {HEAD[stride]}:
        fine, coarse = (shapes[input_] for input_ in joined[name].inputs)
        assert coarse == (shapes[name][0], -(-fine[1] // 2), -(-fine[2] // 2)), name
    one, two = (shapes[input_] for input_ in joined[HEAD[stride]].inputs)
    assert one == two


@STRIDES
@pytest.mark.parametrize("image", [image for image in MAPS if not any(side % 64 for side in image)], ids=str)
def test_every_module_gives_what_the_table_says(image: tuple[int, int], stride: int) -> None:
    space, config = tiny_at(image, stride=stride)
    with torch.device("meta"):  # shapes alone: nothing is computed
        detector = HeatDETR(space, config).eval()
        given = _outputs(detector, torch.zeros(1, 3, *image))
    prediction = given.pop(HEAD[stride])
    shapes = expected_shapes(image, stride=stride)
    assert given == {site.name: _laid_out(shapes[site.name], site.block.gives) for site in detector.sites[:-1]}
    anchors = ANCHORS[stride][image]
    assert prediction == [(1, anchors, 80), (1, anchors, 4), (1, anchors)]


@pytest.mark.parametrize("image", [image for image in MAPS if not any(side % 64 for side in image)], ids=str)
def test_the_stem_halves_the_image_three_times(image: tuple[int, int]) -> None:
    height, width = image
    (stem,) = (site.block for site in walked(image, stride=32) if site.block.kind is Kind.STEM)
    with torch.device("meta"):
        module = Stem(stem)
        first = module.first(torch.zeros(1, 3, height, width))
        second = module.second(first)
    assert tuple(first.shape) == (1, 32, height // 2, width // 2)
    assert tuple(second.shape) == (1, 64, height // 4, width // 4)


@pytest.mark.parametrize("image", [(800, 1333), (320, 480)], ids=str)
def test_a_size_with_odd_maps_belongs_to_no_space(image: tuple[int, int]) -> None:
    height, width = image
    space = named_space("heatdetr", classes=80)
    with pytest.raises(ValidationError, match=f"input size {height}x{width}: both sides must be positive multiples"):
        space.model_copy(update={"images": (image,)})


def _outputs(detector: HeatDETR, images: Tensor) -> dict[str, Any]:
    """Run a detector and return the shape of what each site gives, by name."""
    shapes: dict[str, Any] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor | RawPrediction) -> None:
            shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else [tuple(part.shape) for part in output]

        return keep

    for site, module in zip(detector.sites, detector.blocks.values(), strict=True):
        module.register_forward_hook(hook(site.name))
    detector(images)
    return shapes


def _laid_out(shape: Shape, layout: Layout) -> tuple[int, ...]:
    channels, height, width = shape
    return (1, channels, height, width) if layout is Layout.SPATIAL else (1, height * width, channels)
