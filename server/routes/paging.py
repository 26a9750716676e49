"""What several routes take in their query: pages of listings, and the classes of a space."""

from typing import Annotated

from fastapi import Query

Limit = Annotated[int, Query(ge=1, le=1000, description="Items on the page.")]
Offset = Annotated[int, Query(ge=0, le=2**31, description="Items before the page.")]
After = Annotated[int, Query(ge=0, le=2**31, description="Number of the last event already seen.")]
Classes = Annotated[int, Query(ge=1, le=10_000, description="Object classes the head tells apart.")]
