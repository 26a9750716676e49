"""The commands that show what may be built, and what it costs."""

import typer

from server.cli_options import SpaceOption


def spaces() -> None:
    """List the search spaces, and what each is built for: alone, or with a runtime profile as NAME@PROFILE.

    A profile chooses layout and activation. The activation is part of the weights: name it before training, as in
    `heatnas supernet --space heatdetr-edge@cpu`.

    Example: `heatnas spaces`
    """
    from nas.blocks import Layout  # noqa: PLC0415
    from nas.macs import gmacs  # noqa: PLC0415
    from nas.named import SPACE_NAMES, named_space  # noqa: PLC0415
    from nas.runtime_profile import RuntimeProfile  # noqa: PLC0415
    from server.console import table  # noqa: PLC0415

    rows = []
    for name in SPACE_NAMES:
        space = named_space(name, classes=3)
        inputs = " ".join(f"{height}x{width}" for height, width in space.images)
        low, high = (gmacs(space.blocks(config)) for config in (space.smallest(), space.largest()))
        rows.append((name, inputs, f"{low:.3f}", f"{high:.3f}", str(len(space.all_blocks()))))
    typer.echo(table(("space", "input sizes", "smallest GMACs", "largest GMACs", "table rows"), rows))
    profiles = [(f"{name}@{profile}", profile.runtime) for profile in RuntimeProfile for name in SPACE_NAMES]
    built = []
    for name, runtime in (*((name, "no runtime in particular") for name in SPACE_NAMES), *profiles):
        has = named_space(name, classes=3).structure
        built.append((name, runtime, has.linear_layout or Layout.TOKENS, has.activation))
    typer.echo("\n" + table(("space", "built for", "layout of Linears", "activation"), built))


def macs(*, space: SpaceOption = "heatdetr") -> None:
    """Count the multiply-adds and parameters of the paper's four detectors beside what its Table 3 prints.

    A: 1280x800, convolutions and Linears only. B: 800x1333, products of attention as well. C: the mean over COCO.
    The space heatdetr-xca holds them with channel-wise global attention alone, for devices with little memory.

    Example: `heatnas macs`
    """
    from nas.conventions import Convention, gmacs_by, parameters_m  # noqa: PLC0415
    from nas.named import CONFIG_NAMES, PAPER_GFLOPS, named_config, named_space  # noqa: PLC0415
    from server.console import table  # noqa: PLC0415

    found = named_space(space, classes=80)
    rows = []
    for name in CONFIG_NAMES:
        config = named_config(name, found, image=found.images[-1])
        counts = [f"{gmacs_by(convention, found.structure, config):.2f}" for convention in Convention]
        rows.append((name, *counts, str(PAPER_GFLOPS[name]), f"{parameters_m(found.structure, config):.2f}"))
    header = ("detector", *(f"GMACs {convention}" for convention in Convention), "paper", "parameters M")
    typer.echo(table(header, rows))
