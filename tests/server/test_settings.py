import pytest
from pydantic import ValidationError

from server.settings import Settings


@pytest.mark.parametrize("value", ["inf", "nan", "0", "86401", "abc"])
def test_a_lease_lasts_a_day_at_most(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HEATNAS_LEASE_SECONDS", value)
    with pytest.raises(ValidationError, match="lease_seconds"):
        Settings()
