"""Check (a): the four detectors of Table 3, whole, cost what the arithmetic says and the specification prints.

`test_c_block_formulas` holds block against block. Here each detector is built and fused as it is deployed, at 832x1344,
and neither a product nor a number is left over. On the meta device nothing is computed and no weight takes memory.
"""

from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.blocks import Block, Kind
from nas.config import Config
from nas.conventions import parameters_m
from nas.macs import gmacs, macs, outputs, parameters
from nas.named import CONFIG_NAMES, named_config, named_space
from nas.network import sites
from supernet.detector import HeatDETR, module_key
from supernet.fusing import fuse

IMAGE = (832, 1344)
SPACE = named_space("heatdetr", classes=80)
CONFIGS = {name: named_config(name, SPACE, image=IMAGE) for name in CONFIG_NAMES}
EVERY_NET = pytest.mark.parametrize("name", CONFIGS)

GMACS = {"heatdetr-tiny": 70.0, "heatdetr-small": 73.7, "heatdetr-medium": 77.8, "heatdetr-large": 111.8}
"""At 832x1344, attention's products among them (section 4.2, below the table)."""

PARAMETERS_M = {"heatdetr-tiny": 42.3, "heatdetr-small": 43.8, "heatdetr-medium": 48.3, "heatdetr-large": 55.1}

# Multiply-adds of 1e9 at 800x1333 and parameters in millions, of tiny, small, medium and large (section 4.3).
SHARES = {
    ("stem",): ((2.69, 2.69, 2.69, 5.89), (0.09, 0.09, 0.09, 0.21)),
    ("stage2.entry", "stage3.entry", "stage4.entry"): ((1.17, 1.17, 1.10, 2.10), (1.33, 1.33, 1.18, 1.66)),
    ("stage1.slot",): ((2.46, 4.93, 4.93, 11.08), (0.15, 0.30, 0.30, 0.66)),
    ("stage1.global",): ((3.39, 3.39, 3.39, 7.60), (0.20, 0.20, 0.20, 0.45)),
    ("stage2.slot",): ((0.62, 1.43, 1.43, 3.16), (0.15, 0.34, 0.34, 0.75)),
    ("stage2.global",): ((0.86, 0.86, 0.86, 1.91), (0.20, 0.20, 0.20, 0.45)),
    ("stage3.slot",): ((4.70, 4.54, 10.36, 13.48), (4.47, 4.31, 9.82, 12.78)),
    ("stage3.global",): ((0.85, 0.85, 0.65, 0.85), (0.80, 0.80, 0.61, 0.80)),
    ("stage4.slot",): ((0.45, 0.82, 0.82, 0.82), (1.66, 2.99, 2.99, 2.99)),
    ("stage4.global",): ((0.49, 0.49, 0.49, 0.49), (1.78, 1.78, 1.78, 1.78)),
    ("sam2.",): ((6.75, 6.75, 6.75, 15.15), (0.56, 0.56, 0.56, 1.26)),
    ("sam3.",): ((4.91, 4.91, 3.89, 5.53), (1.35, 1.35, 1.07, 1.50)),
    ("sam4.",): ((3.57, 3.57, 3.46, 3.57), (3.25, 3.25, 3.14, 3.25)),
    ("scm.down", "scm.up"): ((3.43, 3.43, 3.03, 4.74), (2.43, 2.43, 2.16, 2.74)),
    ("scm.global",): ((4.96, 4.96, 4.96, 4.96), (3.55, 3.55, 3.55, 3.55)),
    ("tcm.project1", "tcm.task1"): ((8.28, 8.28, 8.28, 8.28), (6.51, 6.51, 6.51, 6.51)),
    ("tcm.project2", "tcm.task2"): ((16.28, 16.28, 16.28, 16.28), (12.75, 12.75, 12.75, 12.75)),
    ("head",): ((1.09, 1.09, 1.09, 1.09), (1.04, 1.04, 1.04, 1.04)),
}


@cache
def deployed(name: str) -> nn.Module:
    with torch.device("meta"):
        return fuse(HeatDETR(SPACE, CONFIGS[name]))


@EVERY_NET
def test_a_whole_detector_multiplies_what_its_blocks_add_up_to(name: str) -> None:
    blocks = SPACE.blocks(CONFIGS[name])
    with FlopCounterMode(display=False) as counter:
        deployed(name)(torch.zeros(1, 3, *IMAGE, device="meta"))
    # The counter knows every product there is, attention's too: two operations for each multiply-add.
    by_module = counter.get_flop_counts()
    counted = {
        site.name: sum(by_module.get(f"HeatDETR.blocks.{module_key(site.name)}", {}).values())
        for site in SPACE.sites(CONFIGS[name])
    }
    assert counted == {site.name: 2 * macs(site.block) for site in SPACE.sites(CONFIGS[name])}
    assert counter.get_total_flops() == 2 * sum(map(macs, blocks))
    assert gmacs(blocks) == pytest.approx(GMACS[name], abs=0.05)


@EVERY_NET
def test_a_whole_detector_holds_the_numbers_that_its_blocks_add_up_to(name: str) -> None:
    detector = deployed(name)
    learnt = dict(detector.named_parameters())
    constants = {name: buffer for name, buffer in detector.named_buffers() if name.endswith("position.value")}
    # Position biases count. What follows from the shapes alone does not: masks of padded keys, and anchors.
    rest = {name.rpartition(".")[2] for name, _ in detector.named_buffers() if name not in constants}
    assert rest == {"mask", "anchors"}
    held = sum(tensor.numel() for tensor in (learnt | constants).values())
    assert held == sum(map(parameters, SPACE.blocks(CONFIGS[name])))
    # The specification counts gamma and beta where a deployed layer has one bias.
    folded = sum(tensor.numel() for name, tensor in learnt.items() if name.endswith("bias") and "head" not in name)
    assert held + folded == round(1e6 * parameters_m(SPACE.structure, CONFIGS[name]))
    assert (held + folded) / 1e6 == pytest.approx(PARAMETERS_M[name], abs=0.05)


def test_every_block_has_its_share_in_one_module() -> None:
    names = [site.name for site in SPACE.sites(CONFIGS["heatdetr-large"])]
    assert [sum(name.startswith(parts) for parts in SHARES) for name in names] == [1] * len(names)


@pytest.mark.parametrize("parts", SHARES, ids=" and ".join)
def test_each_module_costs_what_the_specification_counted(parts: tuple[str, ...]) -> None:
    of_each = [
        [site.block for site in sites(SPACE.structure, at_paper_size(config)) if site.name.startswith(parts)]
        for config in CONFIGS.values()
    ]
    in_gmacs, in_m = SHARES[parts]
    # The last digit printed is not always the nearest.
    assert [gmacs(blocks) for blocks in of_each] == pytest.approx(in_gmacs, abs=0.01)
    assert [sum(map(numbers, blocks)) / 1e6 for blocks in of_each] == pytest.approx(in_m, abs=0.01)


def at_paper_size(config: Config) -> Config:
    return config.model_copy(update={"image": (800, 1333)})


def numbers(block: Block) -> int:
    return parameters(block) + (0 if block.kind is Kind.HEAD else outputs(block))
