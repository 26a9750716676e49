"""What can go wrong in the search, and what the caller may do about it.

NasError
├── UnknownSpace        no space of that name: choose one that exists
├── InvalidConfig       a config outside its space: names value, rule and next action
├── InvalidBudget       a budget that no number can satisfy: zero, negative, NaN
├── MissingBlocks       the table lacks rows the network needs: measure them
└── BudgetUnreachable   no config of the space is fast enough on that table
    └── ThinningExhausted   one is, but thinning cannot get there: use the exact solver
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.blocks import Block


class NasError(Exception):
    """Base of every error of the package."""


class UnknownSpace(NasError):
    """No search space of that name is known."""


class InvalidConfig(NasError):
    """A config violates a rule of its search space."""


class InvalidBudget(NasError):
    """A budget is not a positive finite number."""


class MissingBlocks(NasError):
    """The lookup table has no row for some blocks: missing is missing, never zero.

    Attributes:
        blocks: the blocks without a row, in the order the network meets them.
        command: what measures them, where it is known.
    """

    def __init__(self, blocks: Sequence["Block"], *, command: str | None = None) -> None:
        self.blocks, self.command = tuple(blocks), command
        shown = ", ".join(block.label for block in self.blocks[:5])
        more = f" and {len(self.blocks) - 5} more" if len(self.blocks) > 5 else ""
        super().__init__(
            f"the table has no row for {len(self.blocks)} block(s): {shown}{more}. "
            + (f"Measure them with `{command}`." if command else "Measure them: run `heatnas profile` for this device.")
        )


class BudgetUnreachable(NasError):
    """No config of the space meets the budget on this table.

    Attributes:
        fastest_ms: the lowest latency any config reaches, in milliseconds.
        target_ms: the latency the budget asks for, in milliseconds.
        binding: label of the costliest block of the fastest config, the one that binds.
    """

    def __init__(self, *, target_ms: float, fastest_ms: float, binding: str) -> None:
        self.target_ms = target_ms
        self.fastest_ms = fastest_ms
        self.binding = binding
        super().__init__(
            f"{1000 / target_ms:.2f} FPS ({target_ms:.3f} ms) is out of reach: the fastest config of the space runs at "
            f"{1000 / fastest_ms:.2f} FPS ({fastest_ms:.3f} ms) and {binding} binds. "
            "Ask for less, choose a smaller input size, or a space with narrower widths."
        )


class ThinningExhausted(BudgetUnreachable):
    """Thinning ran out of moves above the budget although the space holds a config below it.

    Attributes:
        reached_ms: the latency thinning got down to, in milliseconds.
    """

    def __init__(self, *, target_ms: float, fastest_ms: float, binding: str, reached_ms: float) -> None:
        super().__init__(target_ms=target_ms, fastest_ms=fastest_ms, binding=binding)
        self.reached_ms = reached_ms
        text = (
            f"thinning ends at {1000 / reached_ms:.2f} FPS, short of {1000 / target_ms:.2f} FPS: it removes blocks but "
            f"never swaps them. The fastest config reaches {1000 / fastest_ms:.2f} FPS: use the exact solver."
        )
        self.args = (text,)
