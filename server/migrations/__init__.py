"""The schema of the database through time: brought up to date at every start, never downwards by itself."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError, OperationalError

from server.errors import DamagedDatabase, NewerDatabase

VERSION_TABLE = "heatnas_version"
"""Not Alembic's default name: Optuna, which may share the database, uses that one."""


def upgrade(engine: Engine) -> None:
    """Create the tables, or bring those of an older version up to date; nothing is done twice.

    Raises:
        NewerDatabase: the database was written by a newer version; it is left untouched.
    """
    check_version(engine)
    _run(engine, "upgrade", "head")


def downgrade(engine: Engine, revision: str = "base") -> None:
    """Go back to an older schema; what the older one has no place for is lost."""
    check_version(engine)
    _run(engine, "downgrade", revision)


def check_version(engine: Engine) -> str | None:
    """Return the revision of the database, None when it is empty.

    Raises:
        NewerDatabase: this version does not know the revision.
    """
    found = current_revision(engine)
    scripts = ScriptDirectory.from_config(_config())
    if found is not None and found not in {script.revision for script in scripts.walk_revisions()}:
        raise NewerDatabase(
            f"the database has revision {found}, this version of HeatNAS knows revisions up to "
            f"{scripts.get_current_head()}: it was written by a newer version. Upgrade HeatNAS "
            "(`pip install -U heatnas`) or choose another data folder; nothing was changed."
        )
    return found


def current_revision(engine: Engine) -> str | None:
    """Return the revision the database says it has, None when it has none.

    Raises:
        DamagedDatabase: its file is none.
    """
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    except OperationalError:
        raise
    except DatabaseError as error:
        raise DamagedDatabase(
            f"{engine.url.database} is no database that can be read ({error.orig}): restore it from a backup, "
            "or choose another data folder"
        ) from error


def _config() -> Config:
    config = Config()
    # Alembic reads the path through configparser, to which a percent sign means more.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _run(engine: Engine, direction: str, revision: str) -> None:
    config = _config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        if direction == "upgrade":
            command.upgrade(config, revision)
        else:
            command.downgrade(config, revision)
