import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy.exc import IntegrityError, NoResultFound
from starlette.testclient import TestClient

import lookup_tables.errors
import nas.errors
import server.errors
from lookup_tables.errors import TablesError
from nas.blocks import Block, Kind
from nas.errors import BudgetUnreachable, MissingBlocks, ThinningExhausted
from server.app import create_app
from server.errors import NewerDatabase, UnknownJob
from server.http_errors import body_of, status_of
from server.settings import Settings
from tests.server.webs import NOW, open_web, services

BLOCK = Block(kind=Kind.WMSA, channels_in=32, channels_out=32, height=8, width=16)

STATUS = {
    nas.errors: {
        "NasError": 500, "UnknownSpace": 404, "InvalidConfig": 422, "InvalidBudget": 422, "InvalidQuality": 500,
        "MissingBlocks": 409, "BudgetUnmet": 409, "BudgetUnreachable": 409, "ThinningExhausted": 409,
    },
    lookup_tables.errors: {
        "TablesError": 409, "UnknownDevice": 404, "UnknownEdition": 404, "UnknownMeasurement": 404,
        "DeviceConflict": 409, "InvalidMeasurement": 422, "MeasurementConflict": 409, "NotPublishable": 409,
        "UnmeasuredBlocks": 409, "InvalidCalibration": 409, "UnknownCalibration": 404,
        "CalibrationConflict": 409, "DamagedEdition": 500, "InvalidExport": 422, "TamperedExport": 422,
    },
    server.errors: {
        "UpgradeRequired": 426, "UnknownAgent": 404, "UnknownTask": 404, "UnknownLease": 404, "LeaseLost": 410,
        "DuplicateIdentity": 409, "ResultRefused": 409, "ResultMismatch": 422, "NotAuthenticated": 401,
        "UnknownJob": 404, "UnknownSupernet": 404, "UnknownArtifact": 404, "JobNotFinished": 409,
        "IdempotencyConflict": 409, "UnknownBlob": 404,
        # No route raises these.
        "ServerError": 500, "NewerDatabase": 500, "DamagedToken": 500, "DamagedBlob": 500, "JobCancelled": 500,
        "ChildFailed": 500, "TasksFailed": 500, "StepFailed": 500, "WrongGraph": 500,
        "WorkerRunning": 500, "PortTaken": 500, "UnusableFolder": 500, "DamagedDatabase": 500,
    },
}  # fmt: skip


def classes(module: ModuleType) -> dict[str, type[Exception]]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == module.__name__
    }


@pytest.mark.parametrize("module", STATUS, ids=lambda module: module.__name__)
def test_every_error_of_the_product_has_the_status_that_was_meant(module: ModuleType) -> None:
    found = {name: int(status_of(kind.__new__(kind))) for name, kind in classes(module).items()}
    assert found == STATUS[module]


def test_an_error_takes_the_status_of_its_nearest_ancestor() -> None:
    class Gone(UnknownJob):
        pass

    class Odd(TablesError):
        pass

    assert (status_of(Gone("x")), status_of(Odd("x")), status_of(ValueError("x"))) == (404, 409, 500)


def test_a_target_out_of_reach_carries_its_numbers() -> None:
    error = BudgetUnreachable(target_ms=1.0, fastest_ms=4.0, binding="wmsa 32 @8x16", image=(64, 128))
    assert body_of(error) == {
        "error": "BudgetUnreachable",
        "message": str(error),
        "target_fps": 1000.0,
        "fastest_fps": 250.0,
        "fastest_ms": 4.0,
        "binding": "wmsa 32 @8x16",
    }
    exhausted = ThinningExhausted(target_ms=5.0, fastest_ms=4.0, binding="b", image=(64, 128), reached_ms=8.0)
    assert body_of(exhausted)["error"] == "ThinningExhausted"
    assert body_of(exhausted)["fastest_fps"] == 250.0


def test_missing_blocks_are_counted_named_and_come_with_their_command() -> None:
    blocks = [BLOCK.model_copy(update={"height": height}) for height in range(8, 8 + 4 * 150, 4)]
    body = body_of(MissingBlocks(blocks, command="heatnas profile --device pi"))
    assert (body["missing"], len(body["blocks"])) == (150, 100)
    assert body["blocks"][0] == BLOCK.label
    assert body["command"] == "heatnas profile --device pi"
    assert body["message"].endswith("and 145 more. Measure them with `heatnas profile --device pi`.")
    assert "command" not in body_of(MissingBlocks([BLOCK]))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[TestClient]:
    yield from open_web(tmp_path / "data")


def test_a_database_that_is_gone_is_503_and_comes_back(
    web: TestClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert web.get("/v1/health").json()["database"] == "sqlite"
    services(web).database.dispose()
    (tmp_path / "data").rename(tmp_path / "away")
    for path in ("/v1/health", "/v1/jobs"):
        response = web.get(path)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "2"
        assert f"GET {path}: the database does not answer: (sqlite3.OperationalError)" in caplog.text
        assert response.json() == {
            "error": "OperationalError",
            "message": "the database does not answer: is the disk full, or the data folder gone? Try again.",
        }
    (tmp_path / "away").rename(tmp_path / "data")
    assert web.get("/v1/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    "fault",
    [KeyError("secret"), NoResultFound("secret"), IntegrityError("secret", None, ValueError())],
    ids=lambda fault: type(fault).__name__,
)
def test_a_fault_of_our_own_is_told_in_the_one_shape_without_its_insides(tmp_path: Path, fault: Exception) -> None:
    def broken() -> None:
        raise fault

    app = create_app(Settings(data=tmp_path))
    app.add_api_route("/v1/broken", broken, methods=["GET"])
    token = (tmp_path / "token").read_text().strip()
    client = TestClient(app, raise_server_exceptions=False)
    response = client.get("/v1/broken", headers={"Authorization": f"Bearer {token}"})
    app.state.services.database.dispose()
    assert response.status_code == 500
    assert response.json() == {
        "error": "InternalFault",
        "message": f"the server hit a fault of its own ({type(fault).__name__}): its log says where, please report it",
    }


def test_a_hostile_value_is_shortened_and_escaped(web: TestClient) -> None:
    response = web.post("/v1/devices", json={"name": "\u202e\x1b" + "x" * 10_000})
    message = response.json()["message"]
    assert response.status_code == 422
    assert len(message) < 250
    assert "(got '\\u202e\\x1bxxx" in message
    assert message.endswith("x...)")


def test_a_hostile_name_is_shortened_and_escaped_too(web: TestClient) -> None:
    response = web.post("/v1/devices", json={"name": "a", "\u202e\x1b" + "x" * 10_000: 1})
    message = response.json()["message"]
    assert (response.status_code, len(message) < 250) == (422, True)
    assert message.startswith("body.'\\u202e\\x1bxxx")


@pytest.mark.parametrize(
    ("asked", "status", "error", "message"),
    [
        ("bytes=abc", 422, "InvalidRequest", "header.Range: 'bytes=abc' is no range: ask for bytes=FIRST-LAST"),
        (
            "bytes=500-", 416, "RangeNotSatisfiable",
            "header.Range: 'bytes=500-' begins after the end: ask within bytes */5",
        ),
    ],
)  # fmt: skip
def test_a_range_that_cannot_be_sent_is_named(
    web: TestClient, asked: str, status: int, error: str, message: str
) -> None:
    sha256 = services(web).blobs.put(b"graph")
    response = web.get(f"/v1/blobs/{sha256}", headers={"Range": asked})
    assert (response.status_code, response.json()) == (status, {"error": error, "message": message})
    assert response.headers.get("content-range", "bytes */5") == "bytes */5"


@pytest.mark.parametrize("body", [b'{"name": "\xff"}', b'{"name": ' + b"9" * 5000 + b"}", b"[" * 100_000])
def test_a_body_that_cannot_be_read_is_a_value_that_breaks_a_rule(web: TestClient, body: bytes) -> None:
    response = web.post("/v1/devices", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json() == {
        "error": "InvalidRequest",
        "message": "body: it is no JSON that can be read: send UTF-8, and neither deep nesting nor endless digits",
    }


def test_what_the_database_cannot_hold_is_the_callers_value(web: TestClient) -> None:
    response = web.get("/v1/devices/a%00b")
    assert (response.status_code, response.json()["error"]) == (422, "InvalidRequest")


def test_a_folder_from_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    app = create_app(Settings(data=tmp_path), clock=lambda: NOW)
    database = app.state.services.database
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE heatnas_version SET version_num = 'r9999'")
    database.dispose()
    with pytest.raises(NewerDatabase, match="r9999"):
        create_app(Settings(data=tmp_path))
