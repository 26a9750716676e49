"""What every route works with, made once per application."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlalchemy import Engine

from server.leases import LeaseTerms
from server.settings import Settings
from server.stores import Stores


@dataclass(frozen=True)
class Services(Stores):
    """The stores of one application, and its clock."""

    settings: Settings
    database: Engine
    clock: Callable[[], datetime]

    @property
    def terms(self) -> LeaseTerms:
        """What agents are told."""
        return LeaseTerms(
            lease_seconds=self.settings.lease_seconds,
            renew_seconds=self.settings.lease_seconds / 3,
            poll_seconds=self.settings.poll_seconds,
            max_graph_bytes=self.settings.max_graph_bytes,
        )


def services_of(request: Request) -> Services:
    """Return the services of the application that serves a request."""
    return cast("Services", request.app.state.services)


Injected = Annotated[Services, Depends(services_of)]
