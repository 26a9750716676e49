"""The stores of one data folder: jobs, tables and files, for the web and for the worker alike."""

from sqlalchemy import Engine

from lookup_tables.store import TableStore
from server.artifacts import BlobStore
from server.jobs import Jobs
from server.settings import Settings


class Stores:
    """What can be reached from the settings and the database of a data folder."""

    settings: Settings
    database: Engine

    @property
    def jobs(self) -> Jobs:
        """Jobs and their events."""
        return Jobs(self.database)

    @property
    def tables(self) -> TableStore:
        """Measured numbers."""
        return TableStore(self.database)

    @property
    def blobs(self) -> BlobStore:
        """Files by hash."""
        return BlobStore(self.settings.blobs)
