"""What can go wrong between a search space and a detector file, and what the caller may do about it.

SupernetError
└── ParityError         an exported graph computes something else than the module it came from
"""


class SupernetError(Exception):
    """Base of every error of the package."""


class ParityError(SupernetError):
    """An exported graph and its module disagree.

    Attributes:
        label: what was exported.
        max_abs_diff: the largest absolute difference found between their outputs.
        tolerance: the largest one allowed.
    """

    def __init__(self, *, label: str, max_abs_diff: float, tolerance: float) -> None:
        self.label = label
        self.max_abs_diff = max_abs_diff
        self.tolerance = tolerance
        super().__init__(
            f"the exported graph of {label} differs from its module by {max_abs_diff:.3g}, more than {tolerance:.0e}: "
            "the file is not kept. Look for exploding activations, or export with another ONNX Runtime version."
        )
