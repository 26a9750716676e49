import math

import pytest
from pydantic import ValidationError

from server.parameters import PARAMETERS, Parameters, ProfileParameters, ThinParameters, TrainParameters
from server.worker import HANDLERS

THIN = {"device": "bench", "supernet": "train-1", "target_fps": 25}


def test_every_kind_has_parameters_and_a_handler() -> None:
    assert set(PARAMETERS) == set(HANDLERS) == {"train", "profile", "thin"}


@pytest.mark.parametrize(
    "parameters",
    [
        TrainParameters(seed=3),
        ProfileParameters(device="bench", threads=2),
        ThinParameters.model_validate(THIN),
        ThinParameters.model_validate({**THIN, "image": [192, 256]}),
    ],
)
def test_parameters_survive_storage(parameters: Parameters) -> None:
    assert type(parameters).model_validate_json(parameters.model_dump_json()) == parameters


@pytest.mark.parametrize("kind", PARAMETERS)
def test_a_typing_mistake_is_never_ignored(kind: str) -> None:
    with pytest.raises(ValidationError, match="tread"):
        PARAMETERS[kind].model_validate({**THIN, "tread": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_fps": math.nan}, "target_fps nan is not a finite number: ask for frames per second, such as 25"),
        ({"target_fps": math.inf}, "target_fps inf is not a finite number"),
        ({"target_fps": 0}, "greater than or equal to 0.001"),
        ({"target_fps": 1e-306}, "greater than or equal to 0.001"),
        ({"target_fps": 1.7e308}, "less than or equal to 1000000"),
        ({"edition": ""}, "at least 1 character"),
        ({"edition": "e" * 65}, "at most 64 characters"),
        ({"edition": "\ud800"}, "valid string"),
        ({"supernet": "a\x1b[2J"}, "should match pattern"),
        ({"threads": 0}, "greater than or equal to 1"),
        ({"max_rounds": 11}, "less than or equal to 10"),
        ({"solver": "guess"}, "thin_all_stages"),
        ({"device": "../etc"}, "should match pattern"),
        ({"supernet": ""}, "at least 1 character"),
        ({"image": [192]}, "Field required"),
    ],
)
def test_a_value_out_of_range_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ThinParameters.model_validate({**THIN, **changes})


def test_threads_decide_the_execution() -> None:
    assert ThinParameters.model_validate({**THIN, "threads": 3}).execution.threads == 3
    assert ProfileParameters(device="bench", threads=2).execution.threads == 2


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("train", {"steps": True}, "true is not a number: write it without quotes"),
        ("train", {"seed": "1"}, '"1" is not a number: write it without quotes'),
        ("thin", {**THIN, "target_fps": "60"}, '"60" is not a number'),
        ("thin", {**THIN, "threads": False}, "false is not a number"),
    ],
)
def test_what_only_looks_like_a_number_is_none(kind: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PARAMETERS[kind].model_validate(given)
