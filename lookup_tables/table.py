"""A lookup table: the latency of each block on one device, as an immutable edition."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pydantic import Field

from nas.blocks import Block
from nas.values import Value
from profiler.wire import Execution, Name, Text


class Statistic(StrEnum):
    """Which number of a measurement stands in the rows; hot and cold median are kept beside it."""

    HOT = "hot"
    """Hot median. On 14 networks of heatdetr-nano (one thread, scale only, leave one out) sums of hot medians err by
    2.1-2.4 %, sums of the mean of hot and cold by 7.3 %: a cold run of such small blocks takes 2.4 hot ones."""


class TableRow(Value):
    """The latency of one block, and the measurement it comes from."""

    block: Block
    latency_ms: float = Field(gt=0)
    hot_ms: float = Field(gt=0)
    cold_ms: float = Field(gt=0)
    converged: bool
    measurement: Text

    @property
    def fps(self) -> float:
        """Runs of this block alone per second: for people; only latencies add up."""
        return 1000 / self.latency_ms


class TableContent(Value):
    """What an edition consists of; its `id` is the id of the edition.

    Attributes:
        rows: sorted by `Block.key`.
    """

    device: Name
    execution: Execution
    runtime_version: Text | None
    statistic: Statistic
    rows: tuple[TableRow, ...] = Field(min_length=1)

    @classmethod
    def of(
        cls, device: str, execution: Execution, runtime_version: str | None, rows: Iterable[TableRow]
    ) -> "TableContent":
        """Put the rows in order, so that equal content has one id."""
        return cls(
            device=device,
            execution=execution,
            runtime_version=runtime_version,
            statistic=Statistic.HOT,
            rows=tuple(sorted(rows, key=lambda row: row.block.key)),
        )


@dataclass(frozen=True, eq=False)
class LookupTable(Mapping[Block, float]):
    """The latencies of one edition in milliseconds, by block; a missing block raises `KeyError`."""

    edition: str
    content: TableContent
    created_at: datetime
    _rows: dict[Block, TableRow] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {row.block: row for row in self.content.rows})

    def __getitem__(self, block: Block) -> float:
        return self.row(block).latency_ms

    def __iter__(self) -> Iterator[Block]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, block: object) -> bool:
        return block in self._rows

    def row(self, block: Block) -> TableRow:
        """Return the whole row of a block.

        Raises:
            KeyError: the table has no row for it; missing is missing.
        """
        if block not in self._rows:
            raise KeyError(f"edition {self.edition} has no row for {block.label}")
        return self._rows[block]

    @property
    def rows(self) -> tuple[TableRow, ...]:
        """All rows, sorted by `Block.key`."""
        return self.content.rows

    @property
    def device(self) -> str:
        """Name of the device."""
        return self.content.device

    @property
    def execution(self) -> Execution:
        """How the blocks were run."""
        return self.content.execution

    @property
    def statistic(self) -> Statistic:
        """Which number of each measurement stands in the rows."""
        return self.content.statistic
