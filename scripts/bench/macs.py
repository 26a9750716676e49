"""Count the multiply-adds and weights of the paper's four detectors (Table 3).

Measures: `nas.macs` over the one walk of each network, against the 67 / 69 / 73 / 108 GFLOPs that the paper prints.
Three conventions, because its tables mix them (`nas.conventions`), and three readings of what the text leaves open: R*,
which is built here, and the two that come nearest to the printed numbers in conventions A and B; and R* with
channel-wise global attention alone, for devices with little memory.
DETR-R50, the check on the convention, is counted at 800x1333 where the package `transformers` is installed.
Takes seconds.
"""

from importlib.util import find_spec

from _common import command_line, note, options, report

from nas.conventions import Convention, gmacs_by, parameters_m
from nas.named import CONFIG_NAMES, PAPER_GFLOPS, named_config, named_space
from nas.network import Structure

R_STAR = named_space("heatdetr", classes=80).structure

READINGS: dict[str, Structure] = {
    "R*": R_STAR,
    # The reading of the paper's text whose MACs come nearest to the printed ones in convention A, and in B.
    "FA": R_STAR.model_copy(update={"stem_divisors": (2, 1), "tcm_depths": (4, 4)}),
    "FB": R_STAR.model_copy(update={"stem_divisors": (2, 2), "entry_kernel": 2, "token_mlp": 2}),
}


def main() -> None:
    """Count and print."""
    chosen = options(command_line(__doc__).parse_args())
    space = named_space("heatdetr", classes=80)
    configs = {name: named_config(name, space, image=space.images[-1]) for name in CONFIG_NAMES}
    counted = {
        reading: {
            convention: {name: gmacs_by(convention, structure, config) for name, config in configs.items()}
            for convention in Convention
        }
        for reading, structure in READINGS.items()
    }
    # For devices with little memory all global attention is channel-wise: another space, since stage 4 closes with it.
    edge = named_space("heatdetr-xca", classes=80)
    edge_configs = {name: named_config(name, edge, image=edge.images[-1]) for name in CONFIG_NAMES}
    counted["XCA"] = {
        convention: {name: gmacs_by(convention, edge.structure, config) for name, config in edge_configs.items()}
        for convention in Convention
    }
    params_m = {
        reading: {name: parameters_m(structure, config) for name, config in configs.items()}
        for reading, structure in READINGS.items()
    }
    params_m["XCA"] = {name: parameters_m(edge.structure, config) for name, config in edge_configs.items()}
    table: list[list[object]] = [["gmacs", "reading", *Convention, "paper", "params M"]]
    for reading, by_convention in counted.items():
        for name in CONFIG_NAMES:
            row = [by_convention[convention][name] for convention in Convention]
            table.append([name, reading, *row, PAPER_GFLOPS[name], params_m[reading][name]])
    peer, reason = count_detr_r50()
    table.append(["detr-r50", None, None, peer, None, 86, None])
    results: dict[str, object] = {
        name: {
            "gmacs": counted["R*"][Convention.B][name],
            "params_m": params_m["R*"][name],
            "paper_gflops": PAPER_GFLOPS[name],
        }
        for name in CONFIG_NAMES
    }
    results |= {"conventions": counted["R*"], "readings": counted, "readings_params_m": params_m}
    report(chosen, results | {"detr_r50_gmacs": peer, "detr_r50_reason": reason}, table)


def count_detr_r50() -> tuple[float | None, str | None]:
    """Count DETR-R50 at 800x1333 with every product, or say why it could not be counted."""
    if not (find_spec("transformers") and find_spec("torch")):
        return None, "not counted: the package transformers is not installed"
    from _peers import count_gmacs, detr_r50

    note("counting DETR-R50")
    return count_gmacs(detr_r50(), (800, 1333)), None


if __name__ == "__main__":
    main()
