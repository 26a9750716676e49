"""A served application on a data folder, with a table, a supernet and an agent in it when a test wants them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from shutil import copyfile

from starlette.testclient import TestClient

from lookup_tables.calibration import Calibration, Point, fit
from lookup_tables.store import TableStore
from nas.blocks import Block
from nas.macs import gmacs
from nas.named import named_space
from nas.space import SearchSpace
from profiler.identity import result_id
from profiler.wire import Execution
from server.app import create_app
from server.database import Job, JobState, Supernet, writing
from server.services import Services
from server.settings import Settings
from tests.lookup_tables.results import a_result, described, timed
from tests.planted_space import planted_importance
from tests.server.documented import hold_to_the_document

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NANO = named_space("heatdetr-nano", classes=3)
DEVICE = "workbench"


def open_web(data: Path, template: Path | None = None) -> Iterator[TestClient]:
    """Serve a data folder in this process, made or with a copy of a database; requests carry its token."""
    if template is not None:
        data.mkdir()
        copyfile(template, data / "heatnas.sqlite")
    app = create_app(Settings(data=data, poll_seconds=0), clock=lambda: NOW)
    with TestClient(app) as client:
        client.headers["Authorization"] = f"Bearer {(data / 'token').read_text().strip()}"
        hold_to_the_document(client)
        yield client
    app.state.services.database.dispose()


def services(client: TestClient) -> Services:
    found: Services = client.app.state.services  # type: ignore[attr-defined]
    return found


def plant_supernet(client: TestClient, space: SearchSpace = NANO) -> str:
    """Store a supernet whose importance is drawn, not trained."""
    with writing(services(client).database) as session:
        session.add(
            Job(
                id="train-1", kind="train", state=JobState.SUCCEEDED, parameters={}, result={}, created_at=NOW,
                finished_at=NOW,
            )
        )  # fmt: skip
        session.flush()
        session.add(
            Supernet(
                id="train-1", job_id="train-1", space=space.model_dump(mode="json"), checkpoint_sha256="0" * 64,
                importance=planted_importance(space, 0).model_dump(mode="json"), metrics={"data": "shapes"},
                created_at=NOW,
            )
        )  # fmt: skip
    return "train-1"


def block_ns(block: Block) -> int:
    """Invent a time that grows with the work of a block: 20 us and 10 us per MMAC."""
    return round(20_000 + 10_000 * 1000 * gmacs([block]))


def plant_table(client: TestClient, blocks: tuple[Block, ...], space: SearchSpace = NANO) -> str:
    """Publish an edition of invented measurements, calibrated to the sum of its rows."""
    store: TableStore = services(client).tables
    store.register_device(DEVICE, now=NOW, description=described())
    for block in blocks:
        ns = block_ns(block)
        timing = timed(hot_ns=(ns, ns, ns), cold_ns=(2 * ns, 2 * ns))
        result = a_result(task=block.key, timing=timing)
        store.record_measurement(
            result, result_id=result_id(result), device=DEVICE, item_key=block.key, block=block, received_at=NOW
        )
    edition = store.publish(DEVICE, Execution(), blocks, now=NOW)
    if set(space.all_blocks()) <= set(blocks):
        store.add_calibration(edition, calibration(space), now=NOW)
    return edition


def calibration(space: SearchSpace) -> Calibration:
    """Fit to three networks that take just the sum of their blocks."""
    networks = {"largest": space.largest(), "smallest": space.smallest()}
    sums = {name: sum(map(block_ns, space.blocks(config))) / 1e6 for name, config in networks.items()}
    return fit([Point(label=name, sum_ms=ms, weights_mib=1, measured_ms=ms) for name, ms in sums.items()])
