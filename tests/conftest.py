from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import pytest
from hypothesis import settings
from sqlalchemy import Engine, text

from nas.config import Config
from nas.space import SearchSpace
from server import migrations
from server.database import Base, make_engine
from tests.databases import new_database, running_postgres
from tests.planted_space import every_config, small_space

# How long an example takes says nothing here: the machine has other work, and tests run side by side.
settings.register_profile("heatnas", deadline=None)
settings.load_profile("heatnas")


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
def postgres_engine(postgres_server: str) -> Iterator[Engine]:
    """Yield a PostgreSQL database with our schema; `engine` empties it before each test."""
    engine = _migrated(new_database(postgres_server, "heatnas"))
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "heatnas.sqlite"
    _migrated(f"sqlite:///{path}").dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Yield an empty database with our schema: once a SQLite file, once PostgreSQL."""
    if request.param == "sqlite":
        path = tmp_path / "heatnas.sqlite"
        copyfile(request.getfixturevalue("sqlite_template"), path)
        engine = make_engine(f"sqlite:///{path}")
        yield engine
        engine.dispose()
        return
    engine = request.getfixturevalue("postgres_engine")
    with engine.begin() as connection:
        # Measured numbers refuse to be truncated; the owner of a server may switch triggers off.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(f"TRUNCATE {', '.join(Base.metadata.tables)} CASCADE"))
    yield engine


def _migrated(url: str) -> Engine:
    engine = make_engine(url)
    migrations.upgrade(engine)
    return engine
