from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DatabaseError

from server import migrations
from server.database import Base, make_engine
from server.errors import NewerDatabase
from tests.databases import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    url = (
        f"sqlite:///{tmp_path / 'empty 100%.sqlite'}"
        if request.param == "sqlite"
        else new_database(request.getfixturevalue("postgres_server"), tmp_path.name)
    )
    engine = make_engine(url)
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def guards(engine: Engine) -> set[tuple[str, str]]:
    """List triggers with the table they guard, and the functions behind them."""
    queries = {
        "sqlite": "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger'",
        "postgresql": "SELECT tgname, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal"
        " UNION ALL SELECT proname, prosrc FROM pg_proc WHERE proname LIKE '%append_only'",
    }
    with engine.connect() as connection:
        return {(name, table) for name, table in connection.execute(text(queries[engine.dialect.name]))}


def checks(engine: Engine) -> dict[str, list[tuple[str, str]]]:
    found = inspect(engine)
    return {
        table: sorted((str(check["name"]), check["sqltext"]) for check in found.get_check_constraints(table))
        for table in Base.metadata.tables
    }


def test_up_down_and_up_again(empty: Engine) -> None:
    assert migrations.current_revision(empty) is None
    for _ in range(2):
        migrations.upgrade(empty)
        assert tables(empty) == {*Base.metadata.tables, migrations.VERSION_TABLE}
        assert migrations.current_revision(empty) == "0001"
        migrations.downgrade(empty)
        assert tables(empty) == {migrations.VERSION_TABLE}
        assert guards(empty) == set()
        assert migrations.current_revision(empty) is None


def test_upgrading_again_changes_nothing(empty: Engine) -> None:
    migrations.upgrade(empty)
    with empty.begin() as connection:
        connection.execute(
            text("INSERT INTO devices (id, name, created_at) VALUES ('d', 'laptop', '2026-03-01 12:00')")
        )
    migrations.upgrade(empty)
    with empty.connect() as connection:
        assert connection.execute(text("SELECT name FROM devices")).scalar_one() == "laptop"


def test_the_migrated_schema_is_the_one_the_models_describe(empty: Engine) -> None:
    migrations.upgrade(empty)
    options: dict[str, Any] = {"version_table": migrations.VERSION_TABLE, "compare_server_default": True}
    with empty.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []


def test_checks_and_guards_are_those_of_the_models(empty: Engine) -> None:
    """Alembic compares neither CHECK constraints nor triggers."""
    migrations.upgrade(empty)
    migrated = checks(empty), guards(empty)
    migrations.downgrade(empty)
    Base.metadata.create_all(empty)
    assert (checks(empty), guards(empty)) == migrated
    assert sum(map(len, migrated[0].values())) > 20


def test_a_database_of_a_newer_version_is_left_alone(empty: Engine) -> None:
    migrations.upgrade(empty)
    with empty.begin() as connection:
        connection.execute(text("UPDATE heatnas_version SET version_num = '9999'"))
    before = tables(empty)
    for act in (migrations.upgrade, migrations.downgrade, migrations.check_version):
        with pytest.raises(NewerDatabase) as raised:
            act(empty)
        assert str(raised.value) == (
            "the database has revision 9999, this version of HeatNAS knows revisions up to 0001: it was written by a "
            "newer version. Upgrade HeatNAS (`pip install -U heatnas`) or choose another data folder; "
            "nothing was changed."
        )
    assert tables(empty) == before


def test_optuna_may_share_the_database(empty: Engine) -> None:
    """Optuna keeps its own revision in Alembic's default table, which must not be ours."""
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('v3.0.0.d')"))
    migrations.upgrade(empty)
    with empty.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "v3.0.0.d"


def test_a_failed_migration_leaves_the_old_schema(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE tasks (id INTEGER)"))
    with pytest.raises(DatabaseError, match="tasks"):
        migrations.upgrade(empty)
    assert tables(empty) == {"tasks"}
