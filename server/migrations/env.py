"""Run by Alembic for every command: the connection is handed over by `server.migrations`."""

from alembic import context

from server.database import Base
from server.migrations import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
