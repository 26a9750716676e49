"""From block times to the time of a whole network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nas.blocks import Block
from nas.errors import MissingBlocks
from nas.macs import weights_mib

TICK_MS = 2.0**-30
"""The grid of block times, about a picosecond. Floats on it add without rounding up to two hours, so a sum is the same
in every order, and two ways to add up one network never disagree about a budget."""


@dataclass(frozen=True)
class LatencyModel:
    """Predicts a network's latency as `slope` times the sum over its blocks of row plus `fetch_ms_per_mib` * weights.

    A block that is run again and again finds its weights in the caches; in a network the other blocks have driven them
    out, and they are fetched anew in every run.

    Attributes:
        rows_ms: latency of each block alone, in milliseconds; a `lookup_tables.LookupTable` or any mapping.
        fetch_ms_per_mib: time to fetch a MiB of weights.
        slope: ratio of a whole network's time to that sum, from reference networks measured whole.
        margin: share by which the next network may be slower than predicted, at the calibration's confidence.
    """

    rows_ms: Mapping[Block, float]
    fetch_ms_per_mib: float = 0.0
    slope: float = 1.0
    margin: float = 0.0

    def sum_ms(self, blocks: Iterable[Block]) -> float:
        """Add up rows and fetching of the blocks, repeats counted.

        Raises:
            MissingBlocks: some block has no row; a missing row never counts as zero.
        """
        blocks = tuple(blocks)
        self.check(blocks)
        return sum(self.block_ms(block) for block in blocks)

    def check(self, blocks: Iterable[Block]) -> None:
        """Raise `MissingBlocks`, naming every block that has no row."""
        missing = dict.fromkeys(block for block in blocks if block not in self.rows_ms)
        if missing:
            raise MissingBlocks(tuple(missing))

    def block_ms(self, block: Block) -> float:
        """Return what one block adds to the sum, rounded to whole ticks."""
        return round((self.rows_ms[block] + self.fetch_ms_per_mib * weights_mib([block])) / TICK_MS) * TICK_MS

    def predict_ms(self, blocks: Iterable[Block]) -> float:
        """Predict the latency of the network made of these blocks, in milliseconds."""
        return self.from_sum(self.sum_ms(blocks))

    def bound_ms(self, blocks: Iterable[Block]) -> float:
        """Predict the latency that a measurement stays below at the calibration's confidence."""
        return self.predict_ms(blocks) * (1 + self.margin)

    def from_sum(self, sum_ms: float) -> float:
        """Turn a sum over blocks into a predicted latency."""
        return self.slope * sum_ms

    def holds(self, latency_ms: float, limit_ms: float) -> bool:
        """Tell whether a predicted latency stays within the limit, margin included."""
        return latency_ms * (1 + self.margin) <= limit_ms
