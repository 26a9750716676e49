"""The contract of the store, on SQLite and on PostgreSQL."""

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DatabaseError

from lookup_tables import measurements, models
from lookup_tables.calibration import Point, Source, fit
from lookup_tables.connection import reading, writing
from lookup_tables.devices import insert_device
from lookup_tables.errors import (
    CalibrationConflict,
    DamagedEdition,
    DeviceConflict,
    InvalidMeasurement,
    MeasurementConflict,
    NotPublishable,
    UnknownCalibration,
    UnknownDevice,
    UnknownEdition,
    UnknownMeasurement,
    UnmeasuredBlocks,
)
from lookup_tables.measurements import insert_measurement
from lookup_tables.store import TableStore
from lookup_tables.table import Statistic
from nas.blocks import Block
from profiler.wire import DeviceClass, Execution, Result, ResultReceipt
from tests.lookup_tables.results import (
    BLOCKS,
    NOON,
    ONE_THREAD,
    a_result,
    described,
    minutes,
    result_id,
    scaled,
    timed,
)


@pytest.fixture
def store(engine: Engine) -> TableStore:
    store = TableStore(engine)
    store.register_device("laptop", now=NOON, description=described())
    return store


def record(
    store: TableStore,
    block: Block | None,
    result: Result,
    *,
    minute: float = 0,
    device: str = "laptop",
    late: bool = False,
) -> ResultReceipt:
    return store.record_measurement(
        result,
        result_id=result_id(result),
        device=device,
        item_key=block.key if block else "network:abc",
        block=block,
        received_at=minutes(minute),
        late=late,
    )


def record_all(store: TableStore, blocks: tuple[Block, ...] = BLOCKS) -> list[str]:
    results = [a_result(task=block.key, timing=scaled(index + 1)) for index, block in enumerate(blocks)]
    return [record(store, block, result).measurement_id for block, result in zip(blocks, results, strict=True)]


def test_a_device_is_registered_once_and_its_description_renewed(store: TableStore) -> None:
    again = store.register_device("laptop", now=minutes(5), description=described(version="1.32.0"))
    assert again.created_at == NOON
    assert [device.name for device in store.devices()] == ["laptop"]
    device = store.device("laptop")
    assert device.described == described(version="1.32.0")
    assert device.device_class == DeviceClass.LAPTOP_CPU


def test_a_device_can_be_known_before_its_agent_comes(store: TableStore) -> None:
    early = store.register_device("board", now=NOON, device_class=DeviceClass.JETSON)
    assert (early.device_class, early.described) == (DeviceClass.JETSON, None)


def test_two_machines_never_share_a_name(store: TableStore) -> None:
    with pytest.raises(
        DeviceConflict, match=r"'laptop' is another machine \(Example 9, hash mmmmmmmmmmmm\).*another --device name"
    ):
        store.register_device("laptop", now=NOON, description=described(machine="n" * 64))


def test_unknown_device_says_how_to_make_it_known(store: TableStore) -> None:
    with pytest.raises(UnknownDevice, match=r"device 'phone' is unknown: register it .*heatnas-agent --device phone"):
        store.device("phone")


def test_a_result_comes_back_exactly(store: TableStore) -> None:
    result = a_result(timing=timed(tuple(range(10**9, 10**9 + 41)), (2**53 + 1, 7)))
    receipt = record(store, BLOCKS[0], result)
    assert receipt == ResultReceipt(measurement_id=result_id(result), late=False)
    assert store.result(receipt.measurement_id) == result
    assert result_id(store.result(receipt.measurement_id)) == result_id(result)


def test_the_same_result_again_gets_the_same_receipt(store: TableStore) -> None:
    result = a_result()
    first = record(store, BLOCKS[0], result, minute=1)
    again = store.record_measurement(
        result,
        result_id=result_id(result),
        device="laptop",
        item_key=BLOCKS[0].key,
        block=BLOCKS[0],
        received_at=minutes(9),
        late=True,
    )
    assert again == first
    [stored] = store.measurements("laptop")
    assert stored.received_at == minutes(1)
    assert stored.late is False
    assert stored.fps == pytest.approx(1000)


def test_another_result_under_the_same_id_is_refused(store: TableStore) -> None:
    record(store, BLOCKS[0], a_result())
    changed = a_result(timing=scaled(2))
    with pytest.raises(MeasurementConflict, match=r"exists with other content.*hash of its own content"):
        store.record_measurement(
            changed,
            result_id=result_id(a_result()),
            device="laptop",
            item_key=BLOCKS[0].key,
            block=BLOCKS[0],
            received_at=NOON,
        )
    assert store.result(result_id(a_result())) == a_result()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            a_result(timing=timed().model_copy(update={"hot_ms": 0.5, "low_ms": 0.5})),
            r"hot_ms says 0.500000 but the median of the 3 samples in hot_ns is 1.000000",
        ),
        (a_result(timing=timed().model_copy(update={"cold_ns": ()})), "cold_ns holds no runs"),
        (
            a_result(timing=timed().model_copy(update={"cold_ns": (5, 0)})),
            "cold_ns holds no runs, or one of no duration",
        ),
        (
            a_result(timing=timed().model_copy(update={"low_ms": 1.001})),
            r"hot_ms 1.000000 lies outside its own interval",
        ),
        (
            a_result(timing=timed().model_copy(update={"high_ms": 1.1})),
            r"the interval 0.99 to 1.1 ms leaves the samples in hot_ns, which go from 0.990000 to 1.010000 ms",
        ),
        (
            a_result(timing=timed().model_copy(update={"outliers": 4})),
            "outliers says 4 of 3 samples in hot_ns: count each run at most once",
        ),
        (a_result(measured_at="0001-01-01T00:00:00+05:00"), "is no ISO 8601 time of the years 1 to 9999"),
        (a_result(measured_at="2026-03-01T12:00:00"), r"'2026-03-01T12:00:00' has no time zone: send UTC"),
        (a_result(measured_at="noon"), "'noon' is no ISO 8601 time"),
    ],
)
def test_a_result_that_contradicts_itself_is_not_stored(store: TableStore, result: Result, message: str) -> None:
    with pytest.raises(InvalidMeasurement, match=message):
        record(store, BLOCKS[0], result)
    assert store.measurements("laptop") == []


def test_measurements_are_listed_newest_first_by_page(store: TableStore) -> None:
    for minute in range(3):
        record(store, BLOCKS[0], a_result(task=str(minute)), minute=minute)
    record(store, BLOCKS[1], a_result(task="other"), minute=9)
    assert [m.task_id for m in store.measurements("laptop", item_key=BLOCKS[0].key)] == ["2", "1", "0"]
    assert [m.task_id for m in store.measurements("laptop", limit=2, offset=1)] == ["2", "1"]


def test_unknown_measurement_says_where_ids_come_from(store: TableStore) -> None:
    with pytest.raises(UnknownMeasurement, match="no measurement has the id nothing: copy one from a table row"):
        store.result("nothing")


def test_a_table_holds_the_newest_measurement_of_each_block(store: TableStore) -> None:
    record_all(store)
    newer = record(store, BLOCKS[0], a_result(task="again", timing=scaled(10)), minute=1)
    edition = store.publish("laptop", ONE_THREAD, BLOCKS, now=minutes(2))
    table = store.load(edition)
    assert table.row(BLOCKS[0]).measurement == newer.measurement_id
    # The hot median, 1 ms, times what each was scaled by; the cold one, 1.45 ms, is kept beside it.
    assert [table[block] for block in BLOCKS] == pytest.approx([10, 2, 3])
    assert [table.row(block).cold_ms for block in BLOCKS] == pytest.approx([14.5, 2.9, 4.35])
    assert table.row(BLOCKS[1]).fps == pytest.approx(500)
    assert (table.device, table.execution, table.statistic) == ("laptop", ONE_THREAD, Statistic.HOT)
    assert (table.edition, table.created_at, table.content.runtime_version) == (edition, minutes(2), "1.31.1")


def test_a_late_replicate_enters_no_table(store: TableStore) -> None:
    record(store, BLOCKS[0], a_result(attempt=2), minute=11)
    record(store, BLOCKS[0], a_result(timing=scaled(3)), minute=30, late=True)
    record(store, BLOCKS[1], a_result(timing=scaled(4), task="older"), minute=30, late=True)
    table = store.load(store.publish("laptop", ONE_THREAD, BLOCKS[:1], now=minutes(32)))
    assert table[BLOCKS[0]] == pytest.approx(1)
    with pytest.raises(UnmeasuredBlocks) as caught:
        store.publish("laptop", ONE_THREAD, BLOCKS[:2], now=minutes(32))
    assert caught.value.blocks == (BLOCKS[1],)


def test_a_measurement_counts_for_its_own_device_and_item_only(store: TableStore) -> None:
    store.register_device("board", now=NOON)
    record(store, BLOCKS[0], a_result())
    with pytest.raises(MeasurementConflict, match=r"is of rep_cnn.* on laptop, not of rep_cnn.* on board"):
        record(store, BLOCKS[0], a_result(), device="board")
    with pytest.raises(MeasurementConflict, match=r"is of rep_cnn.* on laptop, not of wmsa.* on laptop"):
        record(store, BLOCKS[1], a_result())


def test_a_block_under_two_keys_makes_no_table(store: TableStore) -> None:
    ids = [record(store, BLOCKS[0], a_result()).measurement_id]
    twin = a_result(task="twin")
    store.record_measurement(
        twin, result_id=result_id(twin), device="laptop", item_key="another", block=BLOCKS[0], received_at=NOON
    )
    with pytest.raises(NotPublishable, match="two of the measurements are of the same block"):
        store.publish_measurements("laptop", ONE_THREAD, [*ids, result_id(twin)], now=NOON)


def test_more_blocks_than_a_statement_takes_are_asked_for_in_parts(
    store: TableStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "KEYS_PER_QUERY", 2)
    record_all(store)
    assert store.unmeasured("laptop", ONE_THREAD, BLOCKS) == ()


def test_equal_content_is_one_edition(store: TableStore) -> None:
    ids = record_all(store)
    first = store.publish("laptop", ONE_THREAD, BLOCKS, now=minutes(1))
    assert store.publish("laptop", ONE_THREAD, BLOCKS[::-1], now=minutes(2)) == first
    assert store.publish_measurements("laptop", ONE_THREAD, reversed(ids), now=minutes(3)) == first
    assert [(edition.id, edition.created_at, edition.row_count) for edition in store.editions()] == [
        (first, minutes(1), 3)
    ]


def test_a_block_without_measurement_is_named(store: TableStore) -> None:
    record_all(store, BLOCKS[:1])
    with pytest.raises(UnmeasuredBlocks) as raised:
        store.publish("laptop", ONE_THREAD, BLOCKS, now=NOON)
    assert raised.value.blocks == BLOCKS[1:]
    assert str(raised.value) == (
        "2 block(s) have no measurement on laptop: wmsa 32 @8x16 spatial, wmsa 64 @8x16 tokens. "
        "Measure them with `heatnas profile --device laptop --space SPACE --classes CLASSES --threads 1`."
    )
    assert store.editions() == []


@pytest.mark.parametrize("flag", ["1", "yes", 1.0, "true"])
def test_simulated_times_never_become_a_table(store: TableStore, flag: str | float) -> None:
    receipt = record(store, BLOCKS[0], a_result(context={"simulated": flag}))
    assert store.unmeasured("laptop", ONE_THREAD, BLOCKS[:1]) == BLOCKS[:1]
    with pytest.raises(UnmeasuredBlocks):
        store.publish("laptop", ONE_THREAD, BLOCKS[:1], now=NOON)
    with pytest.raises(NotPublishable, match=r"is simulated: no table is published from it"):
        store.publish_measurements("laptop", ONE_THREAD, [receipt.measurement_id], now=NOON)


def test_only_the_same_execution_counts_as_measured(store: TableStore) -> None:
    record(store, BLOCKS[0], a_result(execution=Execution(threads=2)))
    assert store.unmeasured("laptop", ONE_THREAD, BLOCKS) == BLOCKS
    assert store.unmeasured("laptop", Execution(threads=2), BLOCKS) == BLOCKS[1:]


def test_a_new_runtime_version_makes_old_times_stale(store: TableStore) -> None:
    [old, *_] = record_all(store)
    store.register_device("laptop", now=minutes(1), description=described(version="1.32.0"))
    assert store.unmeasured("laptop", ONE_THREAD, BLOCKS) == BLOCKS
    new = record(store, BLOCKS[1], a_result(task="new"), minute=2).measurement_id
    assert store.unmeasured("laptop", ONE_THREAD, BLOCKS) == (BLOCKS[0], BLOCKS[2])
    with pytest.raises(NotPublishable, match=r"different onnxruntime versions \(1.31.1, 1.32.0\)"):
        store.publish_measurements("laptop", ONE_THREAD, [old, new], now=NOON)


def publish_of_another_device(store: TableStore) -> None:
    store.register_device("board", now=NOON)
    receipt = record(store, BLOCKS[0], a_result(), device="board")
    store.publish_measurements("laptop", ONE_THREAD, [receipt.measurement_id], now=NOON)


def publish_another_execution(store: TableStore) -> None:
    receipt = record(store, BLOCKS[0], a_result(execution=Execution(threads=2)))
    store.publish_measurements("laptop", ONE_THREAD, [receipt.measurement_id], now=NOON)


def publish_a_network(store: TableStore) -> None:
    receipt = record(store, None, a_result())
    store.publish_measurements("laptop", ONE_THREAD, [receipt.measurement_id], now=NOON)


def publish_a_block_twice(store: TableStore) -> None:
    ids = [record(store, BLOCKS[0], a_result(task=task)).measurement_id for task in ("a", "b")]
    store.publish_measurements("laptop", ONE_THREAD, ids, now=NOON)


def publish_nothing(store: TableStore) -> None:
    store.publish("laptop", ONE_THREAD, [], now=NOON)


@pytest.mark.parametrize(
    ("publish", "message"),
    [
        (publish_of_another_device, "is not of laptop: a table describes one device"),
        (publish_another_execution, r"ran as .* with 2 thread\(s\), the table is for .* with 1 thread\(s\)"),
        (publish_a_network, "is of network:abc, no block: leave it out"),
        (publish_a_block_twice, "two of the measurements are of the same block"),
        (publish_nothing, "a table needs at least one row"),
    ],
)
def test_what_makes_no_table(store: TableStore, publish: Callable[[TableStore], None], message: str) -> None:
    with pytest.raises(NotPublishable, match=message):
        publish(store)
    assert store.editions() == []


@pytest.mark.parametrize("table", ["measurements", "editions", "rows", "calibrations"])
@pytest.mark.parametrize("change", ["DELETE FROM {0}", "UPDATE {0} SET {1} = {1}"])
def test_numbers_cannot_be_changed_or_deleted_even_by_hand(
    store: TableStore, engine: Engine, table: str, change: str
) -> None:
    record_all(store)
    edition = store.publish("laptop", ONE_THREAD, BLOCKS, now=NOON)
    store.add_calibration(edition, fit([Point(label="a", sum_ms=10, weights_mib=1, measured_ms=11)]), now=NOON)
    column = {"measurements": "hot_ms", "editions": "created_at", "rows": "latency_ms", "calibrations": "slope"}[table]
    with (
        pytest.raises(DatabaseError, match=f"{table} is append-only: add a new record instead"),
        writing(engine) as session,
    ):
        session.execute(text(change.format(table, column)))
    assert store.load(edition).edition == edition


@pytest.mark.parametrize("table", ["measurements", "editions", "rows", "calibrations"])
def test_numbers_cannot_be_replaced_or_truncated_even_by_hand(store: TableStore, engine: Engine, table: str) -> None:
    record_all(store)
    edition = store.publish("laptop", ONE_THREAD, BLOCKS, now=NOON)
    store.add_calibration(edition, fit([Point(label="a", sum_ms=10, weights_mib=1, measured_ms=11)]), now=NOON)
    replace = f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"  # noqa: S608 - names of our own
    change = replace if engine.dialect.name == "sqlite" else f"TRUNCATE {table} CASCADE"
    with (
        pytest.raises(DatabaseError, match="is append-only: add a new record instead"),
        writing(engine) as session,
    ):
        session.execute(text(change))
    assert len(store.load(edition)) == len(BLOCKS)


def test_an_edition_that_is_not_what_its_id_says_is_not_loaded(store: TableStore, engine: Engine) -> None:
    record_all(store)
    edition = store.publish("laptop", ONE_THREAD, BLOCKS[:2], now=NOON)
    with writing(engine) as session:
        row = session.scalars(select(models.Row)).first()
        assert row is not None
        values = {column.name: getattr(row, column.name) for column in models.Row.__table__.columns}
        third = BLOCKS[2].model_dump(mode="json", exclude_none=True)
        session.add(models.Row(**{**values, "block_key": BLOCKS[2].key, "block": third}))
    with pytest.raises(
        DamagedEdition, match=rf"edition {edition} holds content of the hash \w+ in 3 rows, it was published with 2"
    ):
        store.load(edition)


def test_the_latest_table_is_the_newest_that_covers_the_blocks(store: TableStore) -> None:
    record_all(store)
    whole = store.publish("laptop", ONE_THREAD, BLOCKS, now=minutes(1))
    part = store.publish("laptop", ONE_THREAD, BLOCKS[:1], now=minutes(2))
    assert [edition.id for edition in store.editions(device="laptop", execution=ONE_THREAD)] == [part, whole]
    assert [edition.id for edition in store.editions(limit=1, offset=1)] == [whole]
    assert store.latest("laptop", ONE_THREAD) == part
    assert store.latest("laptop", ONE_THREAD, BLOCKS) == whole


def test_no_table_says_what_is_missing(store: TableStore) -> None:
    with pytest.raises(
        UnknownEdition, match=r"'laptop' has no table for .* with 1 thread\(s\): measure one with `heatnas"
    ):
        store.latest("laptop", ONE_THREAD)
    record_all(store)
    store.publish("laptop", ONE_THREAD, BLOCKS[:1], now=NOON)
    with pytest.raises(UnknownEdition, match=r"covers the space: the newest lacks 2 block\(s\), wmsa 32 @8x16 spatial"):
        store.latest("laptop", ONE_THREAD, BLOCKS)
    with pytest.raises(UnknownEdition, match="table edition 'none' is unknown: list the editions with GET /v1/tables"):
        store.load("none")


def test_rows_are_filtered_and_paged(store: TableStore) -> None:
    record_all(store)
    edition = store.publish("laptop", ONE_THREAD, BLOCKS, now=NOON)
    total, rows = store.rows(edition)
    assert (total, [row.kind for row in rows]) == (3, ["rep_cnn", "wmsa", "wmsa"])
    total, rows = store.rows(edition, kind="wmsa", limit=1, offset=1)
    assert (total, [row.channels_in for row in rows]) == (2, [64])
    assert store.rows(edition, channels=32)[0] == 2
    assert store.rows(edition, kind="stem") == (0, [])
    with pytest.raises(UnknownEdition):
        store.rows("none")


def test_calibrations_are_revisions_that_never_change(store: TableStore) -> None:
    record_all(store)
    edition = store.publish("laptop", ONE_THREAD, BLOCKS, now=NOON)
    with pytest.raises(UnknownCalibration, match=f"edition {edition} has no calibration: profile the device again"):
        store.calibration(edition)
    first = fit(
        [
            Point(label="a", sum_ms=10, weights_mib=1, measured_ms=11),
            Point(label="b", sum_ms=20, weights_mib=1, measured_ms=23),
        ]
    )
    second = first.corrected(
        Point(label="c", sum_ms=15, weights_mib=1, measured_ms=18, source=Source.VERIFICATION, measurement="m")
    )
    for calibration in (first, second, first):
        store.add_calibration(edition, calibration, now=NOON)
    assert store.calibration(edition) == second
    assert store.calibration(edition, 1) == first
    assert store.calibrations(edition) == (first, second)
    with pytest.raises(CalibrationConflict, match="has a revision 1 with other numbers"):
        store.add_calibration(edition, fit(first.points[:1]), now=NOON)
    with pytest.raises(UnknownCalibration, match="has no calibration revision 3"):
        store.calibration(edition, 3)
    with pytest.raises(CalibrationConflict, match=r"next calibration of edition \w+ is revision 3, this is 4"):
        store.add_calibration(edition, second.corrected().corrected(), now=NOON)


def test_concurrent_writers_of_the_same_things_agree(store: TableStore, engine: Engine) -> None:
    result, failures, ready = a_result(), [], threading.Barrier(4)

    def work() -> None:
        ready.wait()
        try:
            for _ in range(5):
                store.register_device("shared", now=NOON)
                record(store, BLOCKS[0], result)
                store.publish("laptop", ONE_THREAD, BLOCKS[:1], now=NOON)
        except Exception as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with reading(engine) as session:
        assert len(session.scalars(select(models.Measurement)).all()) == 1
    assert len(store.editions()) == 1
    assert [device.name for device in store.devices()] == ["laptop", "shared"]


def test_one_of_two_writers_of_a_calibration_revision_is_refused(store: TableStore) -> None:
    record_all(store)
    edition = store.publish("laptop", ONE_THREAD, BLOCKS, now=NOON)
    first = fit([Point(label="a", sum_ms=10, weights_mib=1, measured_ms=11)])
    store.add_calibration(edition, first, now=NOON)
    refused, ready = [], threading.Barrier(4)

    def work(drift: float) -> None:
        ready.wait()
        try:
            store.add_calibration(edition, first.corrected(drift=drift), now=NOON)
        except CalibrationConflict as error:
            refused.append(error)

    threads = [threading.Thread(target=work, args=(1 + number / 10,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert [calibration.revision for calibration in store.calibrations(edition)] == [1, 2]


def test_a_reading_session_sees_one_moment(store: TableStore, engine: Engine) -> None:
    with reading(engine) as session:
        before = session.scalars(select(models.Device.name)).all()
        store.register_device("board", now=NOON)
        assert session.scalars(select(models.Device.name)).all() == before


def test_whoever_refers_to_a_device_need_not_wait_for_its_registration(store: TableStore, engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    with writing(engine) as session:
        insert_device(session, "laptop", now=NOON)
        with writing(engine) as other:
            other.execute(text("SET LOCAL lock_timeout = '2s'"))
            insert_measurement(
                other,
                a_result(),
                result_id=result_id(a_result()),
                device=other.scalars(select(models.Device)).one(),
                item_key=BLOCKS[0].key,
                block=BLOCKS[0],
                runtime_version=None,
                received_at=NOON,
            )
    assert len(store.measurements("laptop")) == 1
