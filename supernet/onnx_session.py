"""ONNX files in ONNX Runtime, on the CPU: any of them once, detectors batch after batch."""

from collections.abc import Sequence

import numpy as np
import onnxruntime

from supernet.postprocess import Floats, Predictor


def open_session(content: bytes, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """Load a file; of what the runtime has to remark only errors are told."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_graph(content: bytes, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run a file once, on one thread; inputs and outputs are in its order."""
    session = open_session(content)
    names = [node.name for node in session.get_inputs()]
    outputs: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
    return outputs


def batch_of(session: onnxruntime.InferenceSession) -> int:
    """Return how many images one run of a detector takes."""
    return int(session.get_inputs()[0].shape[0])


def predictor(session: onnxruntime.InferenceSession) -> Predictor:
    """Return the function that a detector's file computes; it takes a batch or fewer images.

    The file takes `images` (B, 3, H, W) and gives `boxes` and `scores`, as `supernet.export` writes them.
    """
    batch = batch_of(session)

    def predict(images: Floats) -> tuple[Floats, Floats]:
        boxes, scores = session.run(["boxes", "scores"], {"images": filled(images, batch)})
        return boxes[: len(images)], scores[: len(images)]

    return predict


def filled(images: Floats, batch: int) -> Floats:
    """Repeat the last image until a graph of a static batch is full."""
    return np.concatenate((images, np.repeat(images[-1:], batch - len(images), axis=0)))
