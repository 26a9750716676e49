"""From block times to the time of a whole network."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nas.blocks import Block
from nas.errors import MissingBlocks


@dataclass(frozen=True)
class LatencyModel:
    """Predicts a network's latency as `overhead_ms + slope * (sum of its blocks' rows)`.

    Attributes:
        rows_ms: latency of each block alone, in milliseconds; a `lookup_tables.LookupTable` or any mapping.
        overhead_ms: cost of a run that belongs to no block.
        slope: ratio of a whole network's time to the sum of its blocks, from reference networks measured whole.
        margin: share by which the next network may be slower than predicted, at the calibration's confidence.
    """

    rows_ms: Mapping[Block, float]
    overhead_ms: float = 0.0
    slope: float = 1.0
    margin: float = 0.0

    def sum_ms(self, blocks: Iterable[Block]) -> float:
        """Add up the rows of the blocks, repeats counted.

        Raises:
            MissingBlocks: some block has no row; a missing row never counts as zero.
        """
        blocks = tuple(blocks)
        missing = dict.fromkeys(block for block in blocks if block not in self.rows_ms)
        if missing:
            raise MissingBlocks(tuple(missing))
        return sum(self.rows_ms[block] for block in blocks)

    def predict_ms(self, blocks: Iterable[Block]) -> float:
        """Predict the latency of the network made of these blocks, in milliseconds."""
        return self.from_sum(self.sum_ms(blocks))

    def bound_ms(self, blocks: Iterable[Block]) -> float:
        """Predict the latency that a measurement stays below at the calibration's confidence."""
        return self.predict_ms(blocks) * (1 + self.margin)

    def from_sum(self, sum_ms: float) -> float:
        """Turn a sum of rows into a predicted latency."""
        return self.overhead_ms + self.slope * sum_ms

    def holds(self, latency_ms: float, limit_ms: float) -> bool:
        """Tell whether a predicted latency stays within the limit, margin included."""
        return latency_ms * (1 + self.margin) <= limit_ms
