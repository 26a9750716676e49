"""Which blocks of a search space a device has not measured yet, and the command that measures them."""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from lookup_tables.errors import shown
from nas.blocks import Block
from nas.space import SearchSpace


@dataclass(frozen=True)
class Coverage:
    """How much of a space a table covers.

    Attributes:
        total: distinct blocks the space needs.
        missing: those without a row, in the order of the space.
        command: measures what is missing.
    """

    total: int
    missing: tuple[Block, ...]
    command: str

    @property
    def is_complete(self) -> bool:
        """No block is missing."""
        return not self.missing

    @property
    def message(self) -> str:
        """The state in one sentence, with what to do about it."""
        if self.is_complete:
            return f"all {self.total} blocks of the space have a row"
        return (
            f"{len(self.missing)} of {self.total} blocks of the space have no row: {shown(self.missing)}. "
            f"Measure them with `{self.command}`."
        )


def missing_blocks(rows: Container[Block], blocks: Iterable[Block]) -> tuple[Block, ...]:
    """List the blocks without a row, each once, in the order given; works on a table or a set of measured blocks."""
    return tuple(dict.fromkeys(block for block in blocks if block not in rows))


def coverage(
    rows: Container[Block],
    space: SearchSpace,
    *,
    device: str,
    threads: int,
    image: tuple[int, int] | None = None,
) -> Coverage:
    """Compare a table with a space, at one input size or at all of them."""
    blocks = space.all_blocks(image)
    return Coverage(
        total=len(blocks),
        missing=missing_blocks(rows, blocks),
        command=profile_command(device, space.name, classes=space.structure.classes, threads=threads),
    )


def profile_command(device: str, space: str, *, classes: int, threads: int) -> str:
    """Write the command that measures what a device lacks of a space."""
    return f"heatnas profile --device {device} --space {space} --classes {classes} --threads {threads}"
