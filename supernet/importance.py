"""Read out what a trained supernet says about each choice."""

from collections.abc import Mapping

from nas.blocks import Kind
from nas.importance import Importance, Provenance, StageLogits
from supernet.extraction import group_share
from supernet.supernet import Supernet


def read_importance(
    supernet: Supernet, provenance: Provenance, *, stride_ap50: Mapping[int, float] | None = None
) -> Importance:
    """Return the logits r of every slot and closing block, and the share of each channel group (spec 3.6).

    What the mixture finds at each stride of its prediction map is measured elsewhere (`stride_ap50`).
    """
    first, second, third, fourth = (_stage(supernet, number) for number in range(1, 5))
    return Importance(
        space=supernet.space.id,
        stages=(first, second, third, fourth),
        stride_ap50=stride_ap50,
        provenance=provenance,
    )


def _stage(supernet: Supernet, number: int) -> StageLogits:
    slots = supernet.space.stages[number - 1].slots
    return StageLogits(
        slots=tuple(_logits(supernet, f"stage{number}.slot{slot}") for slot in range(slots)),
        global_kinds=_logits(supernet, f"stage{number}.global"),
        group_share=group_share(supernet, number),
    )


def _logits(supernet: Supernet, name: str) -> dict[Kind, float]:
    return dict(zip(supernet.choices[name], supernet.logits_of(name).tolist(), strict=True))
