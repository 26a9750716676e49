import pytest
from pydantic import ValidationError

from nas.blocks import Activation, Block, Kind, Layout, Upsample
from nas.budgets import Budget
from nas.config import Config
from nas.exact import fastest, front
from nas.importance import Importance
from nas.named import named_space
from nas.quality import AdditiveScore
from nas.space import Move, SearchSpace
from nas.thinning import best_path, thin
from nas.values import Value
from tests.planted_space import planted_importance, planted_latency


def block(**changes: object) -> Block:
    fields = {"kind": Kind.WMSA, "channels_in": 64, "channels_out": 64, "height": 12, "width": 16} | changes
    return Block.model_validate(fields)


def test_identity_is_a_hash_of_canonical_json() -> None:
    assert block().canonical_json() == (
        '{"channels_in":64,"channels_out":64,"height":12,"kind":"wmsa","layouts":["spatial"],"width":16}'
    )
    assert block().key == "wmsa-" + block().id
    assert block().id == "7f51dd5884c50f73"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": Kind.SWMSA},
        {"channels_in": 96},
        {"channels_out": 96},
        {"height": 13},
        {"width": 17},
        {"layouts": (Layout.TOKENS,)},
        {"activation": Activation.GELU},
        {"kept_tokens": 100},
        {"anchor_px": (32,)},
        {"stride": 16},
        {"mlp_ratio": 2},
        {"key_width": 32},
        {"kernel": 1},
        {"stem_divisors": (2, 1)},
        {"upsample": Upsample.NEAREST},
        {"linear_layout": Layout.SPATIAL},
    ],
)
def test_every_field_of_a_block_is_part_of_its_key(change: dict[str, object]) -> None:
    assert block(**change).key != block().key


def test_no_field_of_a_block_is_forgotten_here() -> None:
    [parameters] = [mark.args[1] for mark in test_every_field_of_a_block_is_part_of_its_key.pytestmark]
    assert {name for change in parameters for name in change} == set(Block.model_fields)


@pytest.mark.parametrize(
    ("name", "identity"),
    [("heatdetr", "71f9df1269b18b87"), ("heatdetr-edge", "31f97f391d85dd17"), ("heatdetr-nano", "cc7d09c937d1e496")],
)
def test_the_named_spaces_keep_their_identities(name: str, identity: str) -> None:
    """Importance, tables and configs are bound to them: a new field must not show where it changes nothing."""
    assert named_space(name, classes=3).id == identity


def test_a_changed_copy_has_its_own_identity() -> None:
    original = block()
    before = original.id
    copy = original.model_copy(update={"height": 13})
    assert copy.id == block(height=13).id != before


def test_values_survive_json_both_ways() -> None:
    space = named_space("heatdetr-edge", classes=3)
    config = space.largest()
    assert SearchSpace.model_validate_json(space.canonical_json()).id == space.id
    assert Config.model_validate_json(config.canonical_json()) == config


def test_values_refuse_unknown_fields_and_changes() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        block(colour="red")
    with pytest.raises(ValidationError, match="frozen"):
        block().height = 3


def values_of(space: SearchSpace) -> list[Value]:
    """One of each kind of value in the package, the parts of the others included."""
    importance, latency = planted_importance(space, 0), planted_latency(space, 0)
    score = AdditiveScore.from_importance(space, importance)
    budget = Budget(latency_ms=0.9 * latency.predict_ms(space.blocks(best_path(space, importance))))
    trail = thin(space, latency, importance, score, budget, stages="all")
    whole = [
        block(), space, importance, score, budget, trail, fastest(space, latency), front(space, latency, score)[0],
        Move(stage=1, width=32),
    ]  # fmt: skip
    stages = [space.stages[0], importance.stages[0], score.stages[0], trail.start.stages[0]]
    return [*whole, *stages, space.structure, importance.provenance, trail.steps[0], trail.steps[0].taken, trail.start]


def test_every_value_of_the_package_is_frozen_hashable_and_survives_json(space: SearchSpace) -> None:
    values = values_of(space)
    assert {type(value) for value in values} == {
        kind for kind in Value.__subclasses__() if kind.__module__.startswith("nas.")
    }
    for value in values:
        read = type(value).model_validate_json(value.canonical_json())
        assert (read, hash(read), read.id) == (value, hash(value), value.id)
        for name in type(value).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(value, name, getattr(value, name))


def test_trained_logits_cannot_be_changed_and_do_not_depend_on_their_order(space: SearchSpace) -> None:
    importance = planted_importance(space, 0)
    slot = importance.stages[0].slots[0]
    with pytest.raises(TypeError, match="does not support item assignment"):
        slot[Kind.WMSA] = 99.0  # type: ignore[index]
    turned = Importance.model_validate(importance.model_dump())
    stages = [
        stage.model_copy(update={"slots": tuple(dict(reversed(list(slot.items()))) for slot in stage.slots)})
        for stage in turned.stages
    ]
    turned = turned.model_copy(update={"stages": tuple(stages)})
    assert (turned, turned.id) == (importance, importance.id)
    assert list(turned.slot_probability(1, 0).items()) == list(importance.slot_probability(1, 0).items())


def test_kind_values_are_stored_in_tables_and_never_change() -> None:
    assert [kind.value for kind in Kind] == [
        "stem", "entry", "rep_cnn", "wmsa", "swmsa", "identity", "xca", "attention",
        "sparse_attention", "pool", "align", "sam", "scm",
        "up", "project", "split_project", "head",
    ]  # fmt: skip


def test_json_schema_describes_a_config() -> None:
    schema = Config.model_json_schema()
    assert schema["required"] == ["space", "image", "stages"]
    assert schema["properties"]["stages"]["minItems"] == schema["properties"]["stages"]["maxItems"] == 4
