"""How listings are cut into pages."""

from typing import Annotated

from fastapi import Query

Limit = Annotated[int, Query(ge=1, le=1000, description="Items on the page.")]
Offset = Annotated[int, Query(ge=0, le=2**31, description="Items before the page.")]
