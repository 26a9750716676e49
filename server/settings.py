"""The environment of the server: where its data lies, where it listens, what agents are told."""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of one process, from arguments or from `HEATNAS_*` variables.

    Attributes:
        data: the data folder: databases, blobs, data sets, token.
        host: address to listen on; the loopback interface unless told otherwise.
        port: port to listen on.
        lease_seconds: how long an agent's claim on tasks lasts without renewal, a day at most.
        poll_seconds: how long a request for work may wait for some.
        max_graph_bytes: largest graph an agent is asked to run.
        export_processes: child processes that export graphs at the same time.
        train_threads: compute threads of a training.
    """

    model_config = SettingsConfigDict(env_prefix="HEATNAS_", frozen=True, extra="ignore")

    data: Path = Path("heatnas-data")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    lease_seconds: float = Field(120, ge=1, le=86_400)
    poll_seconds: float = Field(20, ge=0, le=50)
    max_graph_bytes: int = Field(512 * 2**20, gt=0)
    export_processes: int = Field(2, ge=1, le=64)
    train_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)

    @property
    def database_url(self) -> str:
        """Where our own tables live."""
        return f"sqlite:///{self.data / 'heatnas.sqlite'}"

    @property
    def engine_url(self) -> str:
        """Where the job engine keeps its state: a file of its own, since SQLite has one writer per file."""
        return f"sqlite:///{self.data / 'engine.sqlite'}"

    @property
    def blobs(self) -> Path:
        """Root of the content-addressed store."""
        return self.data / "blobs"

    @property
    def datasets(self) -> Path:
        """Root of the data sets."""
        return self.data / "datasets"

    def scratch(self, job: str) -> Path:
        """Folder where a job keeps what it needs to resume."""
        return self.data / "scratch" / job
