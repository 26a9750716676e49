"""Count the multiply-adds and weights of the paper's four detectors (Table 3).

Measures: `nas.macs` over the one walk of each network, against the 67 / 69 / 73 / 108 GFLOPs that the paper prints.
Three conventions, because its tables mix them: A = 1280x800, convolutions and Linears only (mmdet); B = 800x1333,
products of attention as well (the size at which FPS is stated); C = the mean over COCO images, taken as 0.846 B.
DETR-R50, the check on the convention, is counted at 800x1333 where the package `transformers` is installed.
Weights are those of the deployed network, without biases. Takes seconds.
"""

from importlib.util import find_spec

from _common import command_line, note, options, report

from nas.blocks import Block
from nas.macs import gmacs, parameters, weight_macs
from nas.named import CONFIG_NAMES, named_config
from nas.network import sites
from nas.space import named_space

PAPER_GFLOPS = (67, 69, 73, 108)

COCO_MEAN = 0.846
"""Mean over the first 100 COCO images divided by the count at 800x1333, for DETR-R50: 86 / 101.7."""


def main() -> None:
    """Count and print."""
    chosen = options(command_line(__doc__).parse_args())
    results: dict[str, object] = {}
    conventions: dict[str, dict[str, float]] = {"A": {}, "B": {}, "C": {}}
    table: list[list[object]] = [["gmacs", "A", "B", "C", "paper", "params M"]]
    for name, paper in zip(CONFIG_NAMES, PAPER_GFLOPS, strict=True):
        full = blocks(name, (800, 1333))
        conventions["A"][name] = sum(map(weight_macs, blocks(name, (800, 1280)))) / 1e9
        conventions["B"][name] = gmacs(full)
        conventions["C"][name] = COCO_MEAN * gmacs(full)
        params_m = sum(map(parameters, full)) / 1e6
        results[name] = {"gmacs": gmacs(full), "params_m": params_m, "paper_gflops": paper}
        table.append([name, *(conventions[letter][name] for letter in "ABC"), paper, params_m])
    peer, reason = count_detr_r50()
    table.append(["detr-r50", None, peer, None, 86, None])
    results |= {"conventions": conventions, "detr_r50_gmacs": peer, "detr_r50_reason": reason}
    report(chosen, results, table)


def blocks(name: str, image: tuple[int, int]) -> tuple[Block, ...]:
    """List the blocks of a Table 3 detector, at an input size that need not be one the space offers."""
    space = named_space("heatdetr", classes=80)
    return tuple(site.block for site in sites(space.structure, named_config(name, space, image=image)))


def count_detr_r50() -> tuple[float | None, str | None]:
    """Count DETR-R50 at 800x1333 with every product, or say why it could not be counted."""
    if not (find_spec("transformers") and find_spec("torch")):
        return None, "not counted: the package transformers is not installed"
    from _peers import count_gmacs, detr_r50

    note("counting DETR-R50")
    return count_gmacs(detr_r50(), (800, 1333)), None


if __name__ == "__main__":
    main()
