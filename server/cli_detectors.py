"""The commands about detectors that need no server: what they cost."""

import typer


def macs() -> None:
    """Count the multiply-adds and parameters of the paper's four detectors beside what its Table 3 prints.

    A: 1280x800, convolutions and Linears only. B: 800x1333, products of attention as well. C: the mean over COCO.

    Example: `heatnas macs`
    """
    from nas.conventions import Convention, gmacs_by, parameters_m  # noqa: PLC0415
    from nas.named import CONFIG_NAMES, PAPER_GFLOPS, named_config  # noqa: PLC0415
    from nas.space import named_space  # noqa: PLC0415
    from server.console import table  # noqa: PLC0415

    space = named_space("heatdetr", classes=80)
    rows = []
    for name in CONFIG_NAMES:
        config = named_config(name, space, image=space.images[-1])
        counts = [f"{gmacs_by(convention, space.structure, config):.2f}" for convention in Convention]
        rows.append((name, *counts, str(PAPER_GFLOPS[name]), f"{parameters_m(space.structure, config):.2f}"))
    header = ("detector", *(f"GMACs {convention}" for convention in Convention), "paper", "parameters M")
    typer.echo(table(header, rows))
