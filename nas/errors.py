"""What can go wrong in the search, and what the caller may do about it.

NasError
├── UnknownSpace        no space of that name: choose one that exists
├── InvalidConfig       a config outside its space: names value, rule and next action
├── InvalidBudget       a budget that no number can satisfy: zero, negative, NaN
├── MissingBlocks       the table lacks rows the network needs: measure them
├── InvalidQuality      a quality that is no number: repair the callable that gave it
└── BudgetUnmet         there is no answer within the budget, for one of two reasons
    ├── BudgetUnreachable   no config of the space is fast enough on that table at that input size
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


class InvalidQuality(NasError):
    """A quality is not a finite number."""


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


class BudgetUnmet(NasError):
    """There is no answer within the budget.

    Attributes:
        target_ms: the latency the budget asks for, in milliseconds.
        fastest_ms: the lowest latency any config of the space reaches at this input size, in milliseconds, margin
            included.
        binding: label of the costliest block of that config, the one that binds.
        image: the input size (height, width) in pixels that this was found at.
    """

    def __init__(
        self, message: str, *, target_ms: float, fastest_ms: float, binding: str, image: tuple[int, int]
    ) -> None:
        self.target_ms = target_ms
        self.fastest_ms = fastest_ms
        self.binding = binding
        self.image = image
        super().__init__(message)


class BudgetUnreachable(BudgetUnmet):
    """No config of the space meets the budget on this table at this input size.

    `smaller` are the space's smaller input sizes; only where there are any does the message advise to choose one.
    """

    def __init__(
        self,
        *,
        target_ms: float,
        fastest_ms: float,
        binding: str,
        image: tuple[int, int],
        smaller: Sequence[tuple[int, int]] = (),
    ) -> None:
        sizes = ", ".join(f"{height}x{width}" for height, width in smaller)
        advice = f"choose a smaller input size ({sizes}), or" if smaller else "or choose"
        super().__init__(
            f"{1000 / target_ms:.2f} FPS ({target_ms:.3f} ms) is out of reach: the fastest config of the space at "
            f"{image[0]}x{image[1]} runs at {1000 / fastest_ms:.2f} FPS ({fastest_ms:.3f} ms, margin included) and "
            f"{binding} binds. Ask for less, {advice} a space with narrower widths.",
            target_ms=target_ms,
            fastest_ms=fastest_ms,
            binding=binding,
            image=image,
        )


class ThinningExhausted(BudgetUnmet):
    """Thinning ran out of moves above the budget although the space holds a config below it.

    Attributes:
        reached_ms: the latency thinning got down to, in milliseconds, margin included.
    """

    def __init__(
        self, *, target_ms: float, fastest_ms: float, binding: str, image: tuple[int, int], reached_ms: float
    ) -> None:
        self.reached_ms = reached_ms
        super().__init__(
            f"thinning ends at {1000 / reached_ms:.2f} FPS, short of {1000 / target_ms:.2f} FPS at "
            f"{image[0]}x{image[1]}: none of its moves, a block removed, a stage narrowed, a coarser map, gains speed "
            f"from there. The fastest config reaches {1000 / fastest_ms:.2f} FPS: ask for it with --solver exact.",
            target_ms=target_ms,
            fastest_ms=fastest_ms,
            binding=binding,
            image=image,
        )
