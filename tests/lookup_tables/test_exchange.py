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
from lookup_tables.models import Base
from lookup_tables.store import TableStore
from server.database import make_engine
from tests.lookup_tables.results import BLOCKS, NOON, ONE_THREAD, a_result, described, minutes, result_id, scaled


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
    first = fit(
        [
            Point(label="a", sum_ms=1 / 3, weights_mib=1, measured_ms=0.4),
            Point(label="b", sum_ms=2, weights_mib=1, measured_ms=2.5),
        ]
    )
    store.add_calibration(edition, first, now=NOON)
    corrected = first.corrected(Point(label="c", sum_ms=1, weights_mib=1, measured_ms=1.4, source=Source.VERIFICATION))
    store.add_calibration(edition, corrected, now=NOON)
    return edition


@pytest.fixture
def other(tmp_path: Path) -> Engine:
    engine = make_engine(f"sqlite:///{tmp_path / 'other.sqlite'}")
    Base.metadata.create_all(engine)
    return engine


def resealed(text: str, change: Callable[[dict[str, Any]], None]) -> str:
    """Change an export as somebody would who also repairs the hash."""
    document = json.loads(text)
    change(document["export"])
    canonical = json.dumps(document["export"], sort_keys=True, separators=(",", ":"))
    return json.dumps({**document, "sha256": hashlib.sha256(canonical.encode()).hexdigest()})


def test_a_table_travels_without_loss(engine: Engine, other: Engine) -> None:
    edition = filled(TableStore(engine))
    text = export_json(engine, edition)
    assert import_json(other, text) == edition
    here, there = TableStore(engine), TableStore(other)
    assert there.load(edition).content == here.load(edition).content
    assert there.load(edition).created_at == minutes(9)
    assert there.calibrations(edition) == here.calibrations(edition)
    for row in here.load(edition).rows:
        assert there.result(row.measurement) == here.result(row.measurement)
    assert there.device("laptop").described == described()
    assert export_json(other, edition) == text


def test_importing_again_changes_nothing(engine: Engine) -> None:
    edition = filled(TableStore(engine))
    text = export_json(engine, edition)
    assert import_json(engine, text.encode()) == edition
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
        import_json(other, json.dumps(document))
    assert TableStore(other).editions() == []


def faster_row(export: dict[str, Any]) -> None:
    export["content"]["rows"][0]["latency_ms"] *= 0.9


def other_edition(export: dict[str, Any]) -> None:
    export["edition"] = "0" * 16


def other_device(export: dict[str, Any]) -> None:
    export["content"]["device"] = "board"


@pytest.mark.parametrize("change", [faster_row, other_edition, other_device])
def test_rows_that_do_not_follow_from_their_samples_are_refused(
    engine: Engine, other: Engine, change: Callable[[dict[str, Any]], None]
) -> None:
    edition = filled(TableStore(engine))
    with pytest.raises(
        TamperedExport, match=r"its measurements make edition .*: the rows do not follow from the samples"
    ):
        import_json(other, resealed(export_json(engine, edition), change))
    assert TableStore(other).editions() == []
    assert TableStore(other).devices() == []


def test_simulated_measurements_do_not_enter_by_import(engine: Engine, other: Engine) -> None:
    def simulate(export: dict[str, Any]) -> None:
        export["measurements"][0]["result"]["context"]["simulated"] = 1.0

    edition = filled(TableStore(engine))
    with pytest.raises(NotPublishable, match="is simulated"):
        import_json(other, resealed(export_json(engine, edition), simulate))
    assert TableStore(other).devices() == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"export": 1}', "not json", '{"export": NaN, "sha256": ""}', b"\xff"]
)
def test_other_files_are_refused(other: Engine, text: str | bytes) -> None:
    with pytest.raises(
        InvalidExport, match=r"this is no table export .*: give a file written by `heatnas table export`"
    ):
        import_json(other, text)


@pytest.mark.parametrize(
    "change",
    [
        lambda export: export.update(format="heatnas.table/99"),
        lambda export: export.pop("content"),
        lambda export: export["content"].update(rows=3),
        lambda export: export["content"]["rows"][0].pop("fps"),
        lambda export: export["measurements"][0].pop("result"),
        lambda export: export.update(surprise=1),
    ],
)
def test_exports_of_another_shape_are_refused(
    engine: Engine, other: Engine, change: Callable[[dict[str, Any]], None]
) -> None:
    edition = filled(TableStore(engine))
    with pytest.raises(InvalidExport, match="no table export of this version"):
        import_json(other, resealed(export_json(engine, edition), change))


def test_a_table_of_another_machine_of_the_same_name_is_refused(engine: Engine, other: Engine) -> None:
    edition = filled(TableStore(engine))
    TableStore(other).register_device("laptop", now=NOON, description=described(machine="n" * 64))
    with pytest.raises(DeviceConflict, match="'laptop' is another machine"):
        import_json(other, export_json(engine, edition))


def test_what_is_known_about_a_device_survives_an_import(engine: Engine) -> None:
    store = TableStore(engine)
    text = export_json(engine, filled(store))
    store.register_device("laptop", now=NOON, description=described(version="2.0.0"))
    import_json(engine, text)
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
