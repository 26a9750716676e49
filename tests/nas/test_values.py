import json

import pytest
from pydantic import ValidationError

from nas.blocks import Activation, Block, Kind, Layout
from nas.config import Config
from nas.space import SearchSpace, named_space


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
    ],
)
def test_every_field_of_a_block_is_part_of_its_key(change: dict[str, object]) -> None:
    assert block(**change).key != block().key


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


def test_kind_values_are_stored_in_tables_and_never_change() -> None:
    assert [kind.value for kind in Kind] == [
        "stem", "entry", "rep_cnn", "wmsa", "swmsa", "identity", "xca", "attention", "pool", "align", "sam", "scm",
        "up", "project", "split_project", "head",
    ]  # fmt: skip


def test_json_schema_describes_a_config() -> None:
    schema = Config.model_json_schema()
    assert schema["required"] == ["space", "image", "stages"]
    assert json.dumps(schema)
