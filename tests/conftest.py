from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import pytest
from sqlalchemy import Engine

from nas.config import Config
from nas.space import SearchSpace
from server import migrations
from server.database import make_engine
from tests.databases import new_database, running_postgres
from tests.planted_space import every_config, small_space


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    return small_space()


@pytest.fixture(scope="session")
def configs(space: SearchSpace) -> list[Config]:
    return every_config(space)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a real PostgreSQL server, started when the first test asks for it."""
    with running_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> str:
    _migrate(new_database(postgres_server, "template_heatnas"))
    return "template_heatnas"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "heatnas.sqlite"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Yield a fresh database with our schema: once a SQLite file, once PostgreSQL."""
    if request.param == "sqlite":
        path = tmp_path / "heatnas.sqlite"
        copyfile(request.getfixturevalue("sqlite_template"), path)
        url = f"sqlite:///{path}"
    else:
        template = request.getfixturevalue("postgres_template")
        url = new_database(request.getfixturevalue("postgres_server"), f"test_{tmp_path.name}", template=template)
    engine = make_engine(url)
    yield engine
    engine.dispose()


def _migrate(url: str) -> None:
    engine = make_engine(url)
    migrations.upgrade(engine)
    engine.dispose()
