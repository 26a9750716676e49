import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from profiler.errors import HashMismatch, UnsafeGraph
from profiler.graphs import GraphCache, check_safe


def external(name: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    return tensor


def model_with(**parts: object) -> bytes:
    graph = helper.make_graph(parts.get("nodes", []), "g", [], [], parts.get("initializers", []))
    graph.sparse_initializer.extend(parts.get("sparse", []))
    model = helper.make_model(graph)
    model.functions.extend(parts.get("functions", []))
    return model.SerializeToString()


def hidden_places() -> dict[str, bytes]:
    tensor = external("w")
    sparse = SparseTensorProto(values=tensor, dims=[4])
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    function = helper.make_function("custom", "f", [], ["c"], [constant], [helper.make_opsetid("", 17)])
    return {
        "initializer": model_with(initializers=[tensor]),
        "sparse initializer": model_with(sparse=[sparse]),
        "constant": model_with(nodes=[constant]),
        "sparse constant": model_with(nodes=[helper.make_node("Constant", [], ["c"], sparse_value=sparse)]),
        "branch": model_with(nodes=[branch]),
        "function": model_with(functions=[function]),
    }


@pytest.mark.parametrize(("place", "model"), hidden_places().items())
def test_external_data_is_found_wherever_it_hides(place: str, model: bytes) -> None:
    with pytest.raises(UnsafeGraph, match="external files"):
        check_safe(model)
    assert place


def test_foreign_binary_node_is_refused() -> None:
    node = helper.make_node("EPContext", [], ["y"], domain="com.microsoft", ep_cache_context="../lib.so")
    with pytest.raises(UnsafeGraph, match="EPContext node, which loads a foreign binary"):
        check_safe(model_with(nodes=[node]))


def test_deeply_nested_graph_is_refused_instead_of_overflowing_the_stack() -> None:
    graph = b""
    for _ in range(40):
        graph = message(1, message(5, message(6, graph)))  # graph.node.attribute.g
    with pytest.raises(UnsafeGraph, match="deeper than 64"):
        check_safe(message(7, graph))


def message(field: int, content: bytes) -> bytes:
    """One length-delimited protobuf field."""
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + content


def test_plain_graph_passes(graph: bytes) -> None:
    check_safe(graph)


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_cut_off_graph_is_refused(graph: bytes, cut: int) -> None:
    with pytest.raises(UnsafeGraph, match="is not an ONNX model"):
        check_safe(graph[:-cut])


@given(st.binary(max_size=200))
def test_any_bytes_pass_or_are_refused(content: bytes) -> None:
    with suppress(UnsafeGraph):  # any other exception is a hole in the check
        check_safe(content)


def store(cache: GraphCache, content: bytes) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    cache.partial(sha256).write_bytes(content)
    cache.keep(sha256)
    return sha256


def test_kept_graph_is_found_with_its_content(tmp_path: Path) -> None:
    cache = GraphCache(tmp_path)
    sha256 = store(cache, b"graph")
    found = cache.find(sha256)
    assert found is not None
    assert found.read_bytes() == b"graph"
    assert cache.find("0" * 64) is None


def test_download_with_another_hash_is_deleted(tmp_path: Path) -> None:
    cache = GraphCache(tmp_path)
    cache.partial("0" * 64).write_bytes(b"other")
    with pytest.raises(HashMismatch, match="announced was 0000"):
        cache.keep("0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_file_damaged_on_disk_is_fetched_again(tmp_path: Path) -> None:
    cache = GraphCache(tmp_path)
    sha256 = store(cache, b"graph")
    (tmp_path / sha256).write_bytes(b"bitrot")
    assert cache.find(sha256) is None
    assert not (tmp_path / sha256).exists()


def test_partial_downloads_of_an_earlier_run_are_deleted(tmp_path: Path) -> None:
    (tmp_path / f"{'0' * 64}.partial").write_bytes(b"half")
    GraphCache(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def three(tmp_path: Path) -> tuple[GraphCache, Callable[[], list[int]]]:
    cache = GraphCache(tmp_path, max_bytes=250)
    hashes = [store(cache, bytes([n]) * 100) for n in range(3)]
    for age, sha256 in enumerate(hashes):
        os.utime(tmp_path / sha256, ns=(age, age))
    return cache, lambda: [n for n, sha256 in enumerate(hashes) if (tmp_path / sha256).exists()]


def test_oldest_graph_goes_first(three: tuple[GraphCache, Callable[[], list[int]]]) -> None:
    cache, left = three
    cache.trim(keep=())
    assert left() == [1, 2]


def test_graph_that_is_needed_stays(three: tuple[GraphCache, Callable[[], list[int]]]) -> None:
    cache, left = three
    cache.trim(keep={hashlib.sha256(bytes([0]) * 100).hexdigest()})
    assert left() == [0, 2]


def test_graph_used_last_is_the_youngest(three: tuple[GraphCache, Callable[[], list[int]]]) -> None:
    cache, left = three
    cache.find(hashlib.sha256(bytes([0]) * 100).hexdigest())
    cache.trim(keep=())
    assert left() == [0, 2]


def test_a_relative_state_folder_gives_paths_that_hold_in_any_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cache = GraphCache(Path("state"))
    sha256 = hashlib.sha256(b"graph").hexdigest()
    (tmp_path / "state" / sha256).write_bytes(b"graph")
    assert cache.find(sha256) == tmp_path / "state" / sha256


@pytest.mark.parametrize("tag", [bytes([0xEA, 0x80, 0x80, 0x80, 0x10]), b"\x02"], ids=["beyond 32 bits", "field 0"])
def test_tag_that_another_reader_would_take_for_another_field_is_refused(tag: bytes) -> None:
    # ModelProto.graph (7) > GraphProto.initializer (5) > TensorProto, whose field 13 is external_data.
    tensor = tag + b"\x00"
    graph = bytes([5 << 3 | 2, len(tensor)]) + tensor
    with pytest.raises(UnsafeGraph):
        check_safe(bytes([7 << 3 | 2, len(graph)]) + graph)
