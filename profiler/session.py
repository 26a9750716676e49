"""Sessions: one graph, loaded and bound to its buffers, ready to be run. The only module that imports ONNX Runtime."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from profiler.errors import GraphTooBig, RuntimeMissing, UnsupportedGraph
from profiler.graphs import check_hash, check_safe
from profiler.wire import Execution

if TYPE_CHECKING:
    from types import ModuleType

INPUT_SEED = 0
"""Seed of the random inputs: latency hardly depends on values, but denormals and NaN would distort it."""

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}
_ERROR_NAMES = (
    "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
    "NotFound", "NotImplemented", "RuntimeException",
)  # fmt: skip
_MEMORY_WORDS = ("failed to allocate", "bad allocation", "bad_alloc", "out of memory", "not enough memory")
_DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
_QUIET = 4
"""ONNX Runtime's severity "fatal": everything else comes as an exception, and is reported as one."""


class Session(Protocol):
    """Anything that can be run and timed."""

    def run(self) -> None:
        """Run once, from bound inputs to bound outputs, and return when the outputs are there."""


class OnnxSession:
    """A graph in ONNX Runtime with preallocated inputs and outputs: a run copies nothing."""

    def __init__(self, session: Any, binding: Any, errors: tuple[type[Exception], ...]) -> None:  # noqa: ANN401
        self._run = session.run_with_iobinding
        self._binding = binding
        self._errors = errors

    def run(self) -> None:
        """Run once on the bound buffers.

        Raises:
            GraphTooBig: the runtime ran out of memory.
            UnsupportedGraph: the runtime failed in the middle of the graph.
        """
        try:
            self._run(self._binding)
        except self._errors as error:
            raise _refusal(error) from error


def open_session(graph: bytes, execution: Execution, *, sha256: str | None = None) -> OnnxSession:
    """Load a graph from its bytes and bind seeded random inputs and preallocated outputs.

    Args:
        graph: the ONNX file, complete in itself; inputs have static shapes.
        execution: provider and threads to run it with.
        sha256: the hash the bytes must have; None where they come from the user's own disk.

    Raises:
        RuntimeMissing: no ONNX Runtime is installed.
        HashMismatch: the bytes are not the announced ones.
        UnsafeGraph: the graph asks for external files.
        UnsupportedGraph: the runtime or the provider cannot run it.
        GraphTooBig: there is not enough memory for it.
    """
    if sha256 is not None:
        check_hash(graph, sha256)
    check_safe(graph)
    runtime = _import_runtime()
    errors = _runtime_errors()
    try:
        session = _load(runtime, graph, execution)
        return OnnxSession(session, _bind(runtime, session, execution), errors)
    except errors as error:
        raise _refusal(error) from error


def check_runtime() -> None:
    """Raise RuntimeMissing unless an ONNX Runtime can be imported."""
    _import_runtime()


def runtime_versions() -> dict[str, str]:
    """Return the installed runtimes by name; empty when there is none."""
    try:
        return {"onnxruntime": str(_import_runtime().__version__)}
    except RuntimeMissing:
        return {}


def available_providers() -> tuple[str, ...]:
    """Return what the installed ONNX Runtime can run on, best first; empty when there is none."""
    try:
        return tuple(_import_runtime().get_available_providers())
    except RuntimeMissing:
        return ()


def _import_runtime() -> "ModuleType":
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeMissing(
            f"no ONNX Runtime can be imported ({error}): `pip install onnxruntime` on a CPU, "
            "`pip install onnxruntime-gpu` beside CUDA, or NVIDIA's wheel on a Jetson. Any of them is used as found."
        ) from error


def _runtime_errors() -> tuple[type[Exception], ...]:
    module = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    named = tuple(getattr(module, name) for name in _ERROR_NAMES if hasattr(module, name))
    return (*named, MemoryError)


def _refusal(error: Exception) -> UnsupportedGraph | GraphTooBig:
    text = " ".join(str(error).split())[:500]
    if isinstance(error, MemoryError) or any(word in text.lower() for word in _MEMORY_WORDS):
        return GraphTooBig(f"out of memory on this graph: {text}. Free memory, or take a smaller input size.")
    return UnsupportedGraph(f"ONNX Runtime cannot run this graph: {text}. Export it for an opset this version knows.")


def _load(runtime: Any, graph: bytes, execution: Execution) -> Any:  # noqa: ANN401
    if execution.provider not in runtime.get_available_providers():
        raise UnsupportedGraph(
            f"provider {execution.provider} is not in this ONNX Runtime, which has "
            f"{', '.join(runtime.get_available_providers())}: ask for one of these, or install the build that has it."
        )
    session = runtime.InferenceSession(graph, _options(runtime, execution), providers=[execution.provider])
    if session.get_providers()[0] != execution.provider:  # ONNX Runtime falls back to the CPU without an error
        raise UnsupportedGraph(
            f"provider {execution.provider} is offered but does not start here, ONNX Runtime fell back to "
            f"{session.get_providers()[0]}: check the driver, or ask for that provider by name."
        )
    return session


def _options(runtime: Any, execution: Execution) -> Any:  # noqa: ANN401
    options = runtime.SessionOptions()
    options.intra_op_num_threads = execution.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _QUIET
    if execution.threads > 1:
        # Idle workers of the other sessions of a group would keep spinning and take the cores of the one being timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _bind(runtime: Any, session: Any, execution: Execution) -> Any:  # noqa: ANN401
    """Bind inputs, run once to learn the shapes of the outputs, then bind buffers of just these shapes."""
    device = _DEVICES.get(execution.provider, "cpu")
    binding = session.io_binding()
    rng = np.random.default_rng(INPUT_SEED)
    for argument in session.get_inputs():
        value = runtime.OrtValue.ortvalue_from_numpy(_random_input(argument, rng), device, 0)
        binding.bind_ortvalue_input(argument.name, value)
    outputs = [argument.name for argument in session.get_outputs()]
    for name in outputs:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    for name, value in zip(outputs, binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(name, value)
    return binding


def _random_input(argument: Any, rng: np.random.Generator) -> np.ndarray:  # noqa: ANN401
    shape = tuple(argument.shape)
    if not all(isinstance(side, int) and side > 0 for side in shape):
        raise UnsupportedGraph(
            f"input {argument.name} has the shape {shape}, and only fixed positive sizes can be timed: "
            "export the graph with static shapes."
        )
    dtype = _DTYPES.get(argument.type)
    if dtype is None:
        raise UnsupportedGraph(f"input {argument.name} is a {argument.type}; known are {', '.join(_DTYPES)}.")
    if np.issubdtype(dtype, np.floating):
        return rng.random(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)  # 0 and 1 are valid as index, mask and class alike
