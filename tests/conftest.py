import pytest

from nas.config import Config
from nas.space import SearchSpace
from tests.planted_space import every_config, small_space


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    return small_space()


@pytest.fixture(scope="session")
def configs(space: SearchSpace) -> list[Config]:
    return every_config(space)
