"""Trained supernets as stored: their space, importance and checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, func, select

from nas.importance import Importance
from nas.space import SearchSpace
from server.database import Supernet, reading
from server.errors import UnknownSupernet

LATEST = "latest"
"""In place of an id: the supernet that was trained last."""


@dataclass(frozen=True)
class StoredSupernet:
    """A supernet that thinning can start from.

    Attributes:
        id: the id of the job that trained it.
        space: what it spans.
        importance: the trained logits.
        checkpoint_sha256: blob of its weights.
        data: name of the data set it was trained on.
        metrics: what the training reported.
        created_at: when it was stored.
    """

    id: str
    space: SearchSpace
    importance: Importance
    checkpoint_sha256: str
    data: str
    metrics: dict[str, Any]
    created_at: datetime


def find_supernet(database: Engine, supernet: str) -> StoredSupernet:
    """Return a supernet by id, or the newest for `latest`.

    Raises:
        UnknownSupernet: there is none.
    """
    newest = select(Supernet).order_by(Supernet.created_at.desc(), Supernet.id).limit(1)
    with reading(database) as session:
        found = session.scalar(newest) if supernet == LATEST else session.get(Supernet, supernet)
    if found is None:
        raise UnknownSupernet(
            f"supernet {supernet!r} is unknown: list them with GET /v1/supernets, or train one with `heatnas supernet`"
        )
    return stored(found)


def list_supernets(database: Engine, *, limit: int, offset: int) -> tuple[int, Sequence[StoredSupernet]]:
    """Count the supernets and return one page, newest first."""
    wanted = select(Supernet).order_by(Supernet.created_at.desc(), Supernet.id)
    with reading(database) as session:
        total = session.scalar(select(func.count()).select_from(Supernet)) or 0
        return total, [stored(found) for found in session.scalars(wanted.limit(limit).offset(offset))]


def stored(record: Supernet) -> StoredSupernet:
    """Read a record."""
    return StoredSupernet(
        id=record.id,
        space=SearchSpace.model_validate(record.space),
        importance=Importance.model_validate(record.importance),
        checkpoint_sha256=record.checkpoint_sha256,
        data=str(record.metrics["data"]),
        metrics=record.metrics,
        created_at=record.created_at,
    )
