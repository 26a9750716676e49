import csv
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from lookup_tables.calibration import Point, Source, fit
from lookup_tables.errors import DeviceConflict, InvalidExport, NotPublishable, TamperedExport, UnknownEdition
from lookup_tables.exchange import CSV_COLUMNS, export_csv, export_json, guard_cell, import_json
from lookup_tables.measurements import network_key
from lookup_tables.models import Base
from lookup_tables.store import TableStore
from profiler.wire import DeviceClass, Result
from server.database import make_engine
from tests.lookup_tables.results import BLOCKS, NOON, ONE_THREAD, a_result, described, minutes, result_id, scaled

LATER = minutes(60)
Change = Callable[[dict[str, Any]], None]


def network(store: TableStore, device: str, label: str, ms: float) -> Point:
    """Measure a network whole, and set it against an invented sum of its rows."""
    result = a_result(task=label, timing=scaled(ms))
    identity = result_id(result)
    store.record_measurement(
        result,
        result_id=identity,
        device=device,
        item_key=network_key(label),
        block=None,
        received_at=minutes(8),
    )
    measured_ms = store.result(identity).timing.hot_ms
    return Point(label=label, sum_ms=ms / 1.2, weights_mib=1, measured_ms=measured_ms, measurement=identity)


def filled(store: TableStore, name: str = "laptop") -> str:
    store.register_device(name, now=NOON, description=described())
    chosen = []
    for index, block in enumerate(BLOCKS):
        result = a_result(task=block.key, timing=scaled(index + 1 / 3))
        chosen.append(result_id(result))
        store.record_measurement(
            result,
            result_id=result_id(result),
            device=name,
            item_key=block.key,
            block=block,
            received_at=minutes(index),
            late=index == 1,
        )
    edition = store.publish_measurements(name, ONE_THREAD, chosen, now=minutes(9))
    first = fit([network(store, name, label, ms) for label, ms in (("a", 0.4), ("b", 2.5))])
    store.add_calibration(edition, first, now=NOON)
    answer = network(store, name, "c", 1.4).model_copy(update={"source": Source.VERIFICATION})
    second = first.corrected(answer)
    store.add_calibration(edition, second, now=NOON)
    met = network(store, name, "d", 1.5)
    store.add_calibration(edition, second.corrected(drift=1.02, measurement=met.measurement), now=NOON)
    return edition


@pytest.fixture
def other(tmp_path: Path) -> Engine:
    engine = make_engine(f"sqlite:///{tmp_path / 'other.sqlite'}")
    Base.metadata.create_all(engine)
    return engine


def resealed(text: str, change: Change) -> str:
    """Change an export as somebody would who also repairs the hash."""
    document = json.loads(text)
    change(document["export"])
    canonical = json.dumps(document["export"], sort_keys=True, separators=(",", ":"))
    return json.dumps({**document, "sha256": hashlib.sha256(canonical.encode()).hexdigest()})


def test_a_table_travels_without_loss(engine: Engine, other: Engine) -> None:
    edition = filled(TableStore(engine))
    text = export_json(engine, edition)
    assert import_json(other, text, now=LATER) == edition
    here, there = TableStore(engine), TableStore(other)
    assert there.load(edition).content == here.load(edition).content
    assert there.load(edition).created_at == minutes(9)
    assert there.calibrations(edition) == here.calibrations(edition)
    rows = [row.measurement for row in here.load(edition).rows]
    for measurement in (*rows, *(point.measurement for point in here.calibration(edition).points)):
        assert there.result(measurement) == here.result(measurement)
    assert there.device("laptop").described == described()
    assert export_json(other, edition) == text


def test_importing_again_changes_nothing(engine: Engine) -> None:
    edition = filled(TableStore(engine))
    text = export_json(engine, edition)
    assert import_json(engine, text.encode(), now=LATER) == edition
    assert export_json(engine, edition) == text
    assert len(TableStore(engine).editions()) == 1


def test_every_exported_row_says_milliseconds_and_fps(engine: Engine) -> None:
    edition = filled(TableStore(engine))
    rows = json.loads(export_json(engine, edition))["export"]["content"]["rows"]
    assert [row["fps"] for row in rows] == [1000 / row["latency_ms"] for row in rows]
    lines = list(csv.DictReader(io.StringIO(export_csv(TableStore(engine).load(edition)))))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert [float(line["fps"]) for line in lines] == [1000 / float(line["latency_ms"]) for line in lines]
    assert [line["label"] for line in lines] == [
        "rep_cnn 32 @8x16 spatial",
        "wmsa 32 @8x16 spatial",
        "wmsa 64 @8x16 tokens",
    ]
    assert (lines[0]["edition"], lines[0]["device"], lines[0]["converged"]) == (edition, "laptop", "true")


def test_a_changed_file_is_refused_naming_both_hashes(engine: Engine, other: Engine) -> None:
    edition = filled(TableStore(engine))
    document = json.loads(export_json(engine, edition))
    claimed = document["sha256"]
    document["export"]["content"]["rows"][0]["latency_ms"] *= 0.9
    with pytest.raises(TamperedExport, match=rf"says SHA-256 {claimed}, its content has (?!{claimed})[0-9a-f]{{64}}"):
        import_json(other, json.dumps(document), now=LATER)
    assert TableStore(other).editions() == []


def faster_row(export: dict[str, Any]) -> None:
    export["content"]["rows"][0]["latency_ms"] *= 0.9


def other_edition(export: dict[str, Any]) -> None:
    export["edition"] = "0" * 16


def other_device(export: dict[str, Any]) -> None:
    export["content"]["device"] = "board"


@pytest.mark.parametrize("change", [faster_row, other_edition, other_device])
def test_rows_that_do_not_follow_from_their_samples_are_refused(engine: Engine, other: Engine, change: Change) -> None:
    edition = filled(TableStore(engine))
    with pytest.raises(
        TamperedExport, match=r"its measurements make edition .*: the rows do not follow from the samples"
    ):
        import_json(other, resealed(export_json(engine, edition), change), now=LATER)
    assert TableStore(other).editions() == []
    assert TableStore(other).devices() == []


def swapped_items(export: dict[str, Any]) -> None:
    first, second = export["measurements"][:2]
    first["item_key"], second["item_key"] = second["item_key"], first["item_key"]


def uncited_measurement(export: dict[str, Any]) -> None:
    planted = a_result(task="planted", timing=scaled(1e-3))
    export["measurements"].append(
        {**export["measurements"][0], "measurement": result_id(planted), "result": planted.model_dump(mode="json")}
    )


def measurement_twice(export: dict[str, Any]) -> None:
    export["measurements"].append(export["measurements"][0])


def point_without_evidence(export: dict[str, Any]) -> None:
    export["measurements"].pop()


def invented_identity(export: dict[str, Any]) -> None:
    export["measurements"][0]["measurement"] = export["content"]["rows"][0]["measurement"] = "zz"


def faster_samples(export: dict[str, Any]) -> None:
    export["measurements"][0]["result"]["timing"].update(scaled(0.1).model_dump(mode="json"))


def block_for_a_network(export: dict[str, Any]) -> None:
    point = export["calibrations"][0]["points"][0]
    point["measurement"] = export["measurements"][0]["measurement"]


def faster_point(export: dict[str, Any]) -> None:
    export["calibrations"][0]["points"][0]["measured_ms"] *= 0.9


def lower_slope(export: dict[str, Any]) -> None:
    export["calibrations"][1]["slope"] *= 0.5


def no_margin(export: dict[str, Any]) -> None:
    export["calibrations"][0]["margin"] = 0.0


def lone_revision(export: dict[str, Any]) -> None:
    del export["calibrations"][0]
    export["calibrations"][0]["revision"] = 2**31 - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            swapped_items,
            r"measurement [0-9a-f]{64} is of rep_cnn.* but cited for wmsa|is of wmsa.* but cited for rep_cnn",
        ),
        (uncited_measurement, "are not those that its rows and calibrations cite"),
        (measurement_twice, "are not those that its rows and calibrations cite"),
        (point_without_evidence, "are not those that its rows and calibrations cite"),
        (invented_identity, r"measurement zz has content of the hash [0-9a-f]{64}: it was changed"),
        (faster_samples, r"has content of the hash [0-9a-f]{64}: it was changed"),
        (block_for_a_network, r"but cited for network:a: export the table again"),
        (faster_point, r"calibration point a says 0.36.* ms, its measurement 0.4 ms"),
        (lower_slope, r"calibration revision 2 says slope 0.6\S*, its points give 1.2"),
        (no_margin, r"calibration revision 1 says margin 0, its points give 0.0"),
        (lone_revision, "calibration 1 of the file is revision 2147483647: revisions run from 1 without a gap"),
    ],
)
def test_what_a_file_does_not_prove_is_refused(engine: Engine, other: Engine, change: Change, message: str) -> None:
    edition = filled(TableStore(engine))
    with pytest.raises(TamperedExport, match=message):
        import_json(other, resealed(export_json(engine, edition), change), now=LATER)
    assert TableStore(other).devices() == []


def test_a_clock_that_runs_ahead_elsewhere_shadows_nothing_measured_here(engine: Engine, other: Engine) -> None:
    def ahead(export: dict[str, Any]) -> None:
        for one in (export, *export["measurements"]):
            one["created_at" if one is export else "received_at"] = "2099-01-01T00:00:00Z"

    edition = filled(TableStore(engine))
    import_json(other, resealed(export_json(engine, edition), ahead), now=LATER)
    here = TableStore(other)
    newer = a_result(task="newer", timing=scaled(7))
    here.record_measurement(
        newer,
        result_id=result_id(newer),
        device="laptop",
        item_key=BLOCKS[0].key,
        block=BLOCKS[0],
        received_at=minutes(61),
    )
    published = here.publish("laptop", ONE_THREAD, BLOCKS[:1], now=minutes(62))
    assert here.load(published)[BLOCKS[0]] == pytest.approx(7)
    assert here.latest("laptop", ONE_THREAD) == published


def test_a_result_timed_in_another_zone_travels_too(engine: Engine, other: Engine) -> None:
    store = TableStore(engine)
    store.register_device("laptop", now=NOON, description=described())
    result = a_result(measured_at="2026-03-01T14:00:00+02:00")
    store.record_measurement(
        result,
        result_id=result_id(result),
        device="laptop",
        item_key=BLOCKS[0].key,
        block=BLOCKS[0],
        received_at=NOON,
    )
    edition = store.publish("laptop", ONE_THREAD, BLOCKS[:1], now=NOON)
    assert import_json(other, export_json(engine, edition), now=LATER) == edition


def test_two_servers_that_both_learned_keep_what_they_learned(engine: Engine, other: Engine) -> None:
    here, there = TableStore(engine), TableStore(other)
    edition = filled(here)
    text = export_json(engine, edition)
    import_json(other, text, now=LATER)
    there.add_calibration(edition, there.calibration(edition).corrected(drift=1.1), now=LATER)
    here.add_calibration(edition, here.calibration(edition).corrected(drift=0.9), now=LATER)
    kept = there.calibrations(edition)
    assert import_json(other, export_json(engine, edition), now=LATER) == edition
    assert there.calibrations(edition) == kept


def test_simulated_measurements_do_not_enter_by_import(engine: Engine, other: Engine) -> None:
    def simulate(export: dict[str, Any]) -> None:
        simulated = export["measurements"][0]
        simulated["result"]["context"]["simulated"] = 1.0
        identity = result_id(Result.model_validate(simulated["result"]))
        simulated["measurement"] = export["content"]["rows"][0]["measurement"] = identity

    edition = filled(TableStore(engine))
    with pytest.raises(NotPublishable, match="is simulated"):
        import_json(other, resealed(export_json(engine, edition), simulate), now=LATER)
    assert TableStore(other).devices() == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"export": 1}', "not json", '{"export": NaN, "sha256": ""}', b"\xff"]
)
def test_other_files_are_refused(other: Engine, text: str | bytes) -> None:
    with pytest.raises(
        InvalidExport,
        match=r"this is no table export, which holds .*: give a file that `heatnas table export` has",
    ):
        import_json(other, text, now=LATER)


@pytest.mark.parametrize(
    "change",
    [
        lambda export: export.update(format="heatnas.table/99"),
        lambda export: export.pop("content"),
        lambda export: export["content"].update(rows=3),
        lambda export: export["content"]["rows"][0].pop("fps"),
        lambda export: export["measurements"][0].pop("result"),
        lambda export: export.update(surprise=1),
        lambda export: export.update(created_at="2026-03-01T12:00:00"),
        lambda export: export["measurements"][0].update(received_at="2026-03-01T12:00:00"),
        lambda export: export["measurements"][0].update(received_at="0001-01-01T00:00:00+05:00"),
        lambda export: export["measurements"][0].update(measurement="\ud800"),
        lambda export: export["measurements"][0]["result"].update(attempt=2**70),
        lambda export: export["calibrations"][0].update(revision=2**70),
    ],
)
def test_exports_of_another_shape_are_refused(engine: Engine, other: Engine, change: Change) -> None:
    edition = filled(TableStore(engine))
    with pytest.raises(InvalidExport, match="no table export of this version"):
        import_json(other, resealed(export_json(engine, edition), change), now=LATER)


def test_a_block_larger_than_any_database_holds_is_refused(engine: Engine, other: Engine) -> None:
    def enlarge(export: dict[str, Any]) -> None:
        export["content"]["rows"][0]["block"]["height"] = 2**70

    edition = filled(TableStore(engine))
    with pytest.raises(InvalidExport, match=f"size of {2**70}, the largest is 2147483647: export it again"):
        import_json(other, resealed(export_json(engine, edition), enlarge), now=LATER)


def test_a_table_of_another_machine_of_the_same_name_is_refused(engine: Engine, other: Engine) -> None:
    edition = filled(TableStore(engine))
    TableStore(other).register_device("laptop", now=NOON, description=described(machine="n" * 64))
    with pytest.raises(DeviceConflict, match="'laptop' is another machine"):
        import_json(other, export_json(engine, edition), now=LATER)


def test_a_table_of_a_machine_it_does_not_name_is_refused_where_the_machine_is_known(
    engine: Engine, other: Engine
) -> None:
    edition = filled(TableStore(engine))
    TableStore(other).register_device("laptop", now=NOON, description=described(machine="n" * 64))
    text = resealed(export_json(engine, edition), lambda export: export.update(description=None))
    with pytest.raises(DeviceConflict, match="the file does not say which machine it was measured on"):
        import_json(other, text, now=LATER)


def test_a_file_does_not_take_the_name_of_a_device_from_its_agent(engine: Engine, other: Engine) -> None:
    there = TableStore(other)
    there.register_device("laptop", now=NOON)
    import_json(other, export_json(engine, filled(TableStore(engine))), now=LATER)
    assert there.device("laptop").described is None
    mine = described(machine="n" * 64)
    assert there.register_device("laptop", now=LATER, description=mine).described == mine


def test_a_class_without_a_description_travels(engine: Engine, other: Engine) -> None:
    store = TableStore(engine)
    store.register_device("board", now=NOON, device_class=DeviceClass.JETSON)
    store.record_measurement(
        a_result(),
        result_id=result_id(a_result()),
        device="board",
        item_key=BLOCKS[0].key,
        block=BLOCKS[0],
        received_at=NOON,
    )
    edition = store.publish("board", ONE_THREAD, BLOCKS[:1], now=NOON)
    import_json(other, export_json(engine, edition), now=LATER)
    assert TableStore(other).device("board").device_class == DeviceClass.JETSON


@pytest.mark.parametrize("name", ["a/b; rm -rf ~", "", "-x", "$(id)"])
def test_a_device_name_that_no_command_could_carry_is_refused(engine: Engine, other: Engine, name: str) -> None:
    text = resealed(
        export_json(engine, filled(TableStore(engine))), lambda export: export["content"].update(device=name)
    )
    with pytest.raises(InvalidExport, match=r"content\.device"):
        import_json(other, text, now=LATER)


def test_what_is_known_about_a_device_survives_an_import(engine: Engine) -> None:
    store = TableStore(engine)
    text = export_json(engine, filled(store))
    store.register_device("laptop", now=NOON, description=described(version="2.0.0"))
    import_json(engine, text, now=LATER)
    assert store.device("laptop").described == described(version="2.0.0")


def test_an_unknown_edition_cannot_be_exported(engine: Engine) -> None:
    with pytest.raises(UnknownEdition, match="table edition 'none' is unknown"):
        export_json(engine, "none")


def test_a_spreadsheet_finds_no_formula(engine: Engine) -> None:
    store = TableStore(engine)
    store.register_device("laptop", now=NOON, description=described())
    store.record_measurement(
        a_result(),
        result_id='=HYPERLINK("http://example.org")',
        device="laptop",
        item_key=BLOCKS[0].key,
        block=BLOCKS[0],
        received_at=NOON,
    )
    text = export_csv(store.load(store.publish("laptop", ONE_THREAD, BLOCKS[:1], now=NOON)))
    [line] = csv.DictReader(io.StringIO(text))
    assert line["measurement"] == '\'=HYPERLINK("http://example.org")'


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_cells_that_start_a_formula_are_guarded(start: str) -> None:
    assert guard_cell(f"{start}1") == f"'{start}1"
    assert guard_cell(f"a{start}") == f"a{start}"
