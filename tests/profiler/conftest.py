"""Real parts for the tests: tiny ONNX graphs, and an HTTP server that speaks the agent protocol."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from profiler.wire import (
    Enrolled,
    Enrolment,
    Execution,
    Lease,
    LeaseRequest,
    Policy,
    Release,
    Renewed,
    Result,
    ResultReceipt,
    Task,
)

TOKEN = "a-token"  # noqa: S105  of a server that lives as long as one test
QUICK = Policy(warmup_runs=3, min_hot_runs=8, max_hot_runs=8)


def make_graph(*, size: int = 16, weight: float = 1.0) -> bytes:
    """A matrix product and a ReLU: the smallest graph worth timing; `weight` makes another file of it."""
    matrix = numpy_helper.from_array(np.full((size, size), weight, np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in ("x", "y")]
    return as_model(nodes, value[:1], value[1:], [matrix])


def make_endless_graph() -> bytes:
    """A loop of 2^62 steps: valid ONNX that never comes back."""
    step = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["go_on"]), helper.make_node("Relu", ["v"], ["w"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [4]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]),
        ],
    )
    constants = [numpy_helper.from_array(np.array(2**62), "n"), numpy_helper.from_array(np.array(True), "yes")]
    loop = helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=step)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    return as_model([loop], value[:1], value[1:], constants)


def as_model(nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any]) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


class ProtocolServer:
    """The agent protocol over real HTTP, with everything in memory and every request on record."""

    def __init__(self, *, lease_seconds: float = 30.0) -> None:
        self.lease_seconds = lease_seconds
        self.tasks: dict[str, Task] = {}
        self.state: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.results: dict[str, Result] = {}
        self.accepted: list[tuple[str, str]] = []
        """(task id, result id) of each result that completed a task."""
        self.failures: list[tuple[str, dict[str, Any]]] = []
        self.log: list[str] = []
        self.renewals: list[dict[str, Any]] = []
        self.released: list[str] = []
        self.crashed: list[str] = []
        """Those of them whose agent said that it had died."""
        self.cancelled: tuple[str, ...] = ()
        self.before: Callable[[str], tuple[int, str] | None] = lambda _: None
        """Called before each request with "METHOD kind"; a (status, body) it returns is the reply."""
        self.after: Callable[[str], None] = lambda _: None
        """Called after each request was dealt with, before its reply is sent."""
        self._leases: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def add(self, task_id: str, graph: bytes, *, policy: Policy = QUICK, threads: int = 1) -> Task:
        sha256 = hashlib.sha256(graph).hexdigest()
        self.blobs[sha256] = graph
        self.tasks[task_id] = Task(
            task_id=task_id,
            attempt=1,
            graph_sha256=sha256,
            graph_bytes=len(graph),
            label=f"block {task_id}",
            execution=Execution(threads=threads),
            policy=policy,
        )
        self.state[task_id] = "pending"
        return self.tasks[task_id]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        match (method, *path.strip("/").split("/")[1:]):
            case ("POST", "agents"):
                device = Enrolment.model_validate_json(body).device
                enrolled = Enrolled(
                    agent_id="agent-1",
                    device=device,
                    protocol=1,
                    lease_seconds=self.lease_seconds,
                    renew_seconds=self.lease_seconds / 3,
                    poll_seconds=0.1,
                    max_graph_bytes=2**20,
                )
                return 201, enrolled.model_dump_json().encode()
            case ("POST", "agents", "agent-1", "leases"):
                return 200, self._lease(LeaseRequest.model_validate_json(body)).model_dump_json().encode()
            case ("POST", "leases", lease_id, "renew"):
                self.renewals.append(json.loads(body))
                if lease_id not in self._leases:
                    return 410, b'{"error": "LeaseGone", "message": "the lease is over"}'
                renewed = Renewed(lease_seconds=self.lease_seconds, cancelled=self.cancelled)
                return 200, renewed.model_dump_json().encode()
            case ("POST", "leases", lease_id, "release"):
                return self._release(lease_id, Release.model_validate_json(body))
            case ("GET", "blobs", sha256):
                return (200, self.blobs[sha256]) if sha256 in self.blobs else (404, b'{"message": "no such blob"}')
            case ("PUT", "results", result_id):
                return self._result(result_id, Result.model_validate_json(body))
            case ("POST", "tasks", task_id, "failures"):
                self.failures.append((task_id, json.loads(body)))
                self.state[task_id] = "failed"
                return 200, b"{}"
        return 404, b'{"message": "no such route"}'

    def _lease(self, request: LeaseRequest) -> Lease:
        pending = [key for key, state in self.state.items() if state == "pending"][: request.max_tasks]
        if not pending:
            return Lease(lease_id=None, lease_seconds=self.lease_seconds, tasks=())
        lease_id = f"lease-{len(self.log)}"
        self._leases[lease_id] = pending
        for key in pending:
            self.state[key] = "leased"
        return Lease(
            lease_id=lease_id, lease_seconds=self.lease_seconds, tasks=tuple(self.tasks[key] for key in pending)
        )

    def expire(self, lease_id: str) -> None:
        """What the server does when a lease ends: the open tasks get a new attempt."""
        for key in self._leases.pop(lease_id, []):
            if self.state[key] == "leased":
                self.state[key] = "pending"
                self.tasks[key] = self.tasks[key].model_copy(update={"attempt": self.tasks[key].attempt + 1})

    def expire_all(self) -> None:
        for lease_id in list(self._leases):
            self.expire(lease_id)

    def _release(self, lease_id: str, asked: Release) -> tuple[int, bytes]:
        if lease_id not in self._leases:
            return 404, b'{"message": "no such lease"}'
        self.released.append(lease_id)
        self.crashed += [lease_id] * asked.crashed
        self.expire(lease_id)
        return 204, b""

    def _result(self, result_id: str, result: Result) -> tuple[int, bytes]:
        known = result_id in self.results
        self.results[result_id] = result
        task = self.tasks[result.task_id]
        late = result.attempt != task.attempt or self.state[task.task_id] == "done"
        if not late:
            self.state[task.task_id] = "done"
            self.accepted.append((task.task_id, result_id))
        return 200 if known else 201, ResultReceipt(measurement_id=result_id, late=late).model_dump_json().encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 2**16  # one packet a reply: two would wait 40 ms for each other

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                kind = f"{self.command} {self.path.split('/')[2]}"
                kind += f" {self.path.split('/')[-1]}" if self.path.count("/") > 3 else ""
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    return self.reply(401, b'{"error": "NotAuthorised", "message": "wrong token"}')
                scripted = server.before(kind)
                with server._lock:
                    server.log.append(kind)
                    status, content = (
                        (scripted[0], scripted[1].encode())
                        if scripted
                        else server.answer(self.command, self.path, body)
                    )
                server.after(kind)
                return self.reply(status, content)

            def reply(self, status: int, content: bytes) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_GET = do_POST = do_PUT = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[ProtocolServer]:
    server = ProtocolServer()
    yield server
    server.close()


@pytest.fixture
def graph() -> bytes:
    return make_graph()


@pytest.fixture
def graph_of() -> Callable[..., bytes]:
    return make_graph


@pytest.fixture
def model_of() -> Callable[..., bytes]:
    return as_model


@pytest.fixture
def endless_graph() -> bytes:
    return make_endless_graph()


@pytest.fixture
def token() -> str:
    return TOKEN


@pytest.fixture
def quick() -> Policy:
    return QUICK
