"""An exported graph as the parent hears of it."""

from pathlib import Path
from typing import Any

from server.artifacts import BlobStore
from supernet.export import ExportedGraph

Json = dict[str, Any]


def item(parameters: Json, key: str, label: str, graph: ExportedGraph) -> Json:
    """Keep the file in the blob store and describe it: key, sha256, bytes, label, parity."""
    return {
        "key": key,
        "sha256": keep(parameters, graph.onnx),
        "bytes": len(graph.onnx),
        "label": label,
        "parity": graph.parity.model_dump(mode="json"),
    }


def keep(parameters: Json, content: bytes) -> str:
    """Store bytes and return their SHA-256."""
    return BlobStore(Path(parameters["blobs"])).put(content)
