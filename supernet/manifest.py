"""What stands beside exported detector files: all that it takes to feed them, and to trust them."""

import json
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from nas.blocks import Activation, Layout
from nas.config import Config
from nas.runtime_profile import RuntimeProfile
from nas.space import SearchSpace
from nas.values import Value
from supernet.errors import BadManifest
from supernet.evaluation import Evaluation
from supernet.export import ParityRecord
from supernet.files import file_sha256, write_whole
from supernet.float16 import Float16Parity
from supernet.postprocess import MAX_CANDIDATES, MAX_DETECTIONS, MAX_IOU, MIN_SCORE
from supernet.quantisation import Calibration

FORMAT = 1
"""Version of the layout below; other versions are refused."""

NAME = "manifest.json"


class Precision(StrEnum):
    """Number format of a file's weights and maps; inputs and outputs are float32 in all of them."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"

    @property
    def file_name(self) -> str:
        """Return what a file of this precision is called."""
        return "model.onnx" if self is Precision.FP32 else f"model.{self}.onnx"


class Preprocessing(Value):
    """From an upright RGB image to the input `images`.

    Attributes:
        shape: of the input: images, channels, height, width.
        resize: how an image comes to this height and width.
        channels: their order.
        range: of the values.
        dtype: of the values.
        layout: of the axes.
    """

    shape: tuple[int, int, int, int]
    resize: str = "stretch to height x width, bilinear (Pillow), proportions not kept"
    channels: str = "RGB"
    range: tuple[float, float] = (0.0, 1.0)
    dtype: str = "float32"
    layout: str = "NCHW"


class Postprocessing(Value):
    """What is left to do with the outputs, in this order.

    Attributes:
        score_above: candidates are pairs of box and class with a higher score.
        candidates: so many of the best are kept.
        nms_iou: of two that overlap more, the worse is dropped.
        nms: among which candidates.
        detections: so many of the best are kept.
    """

    score_above: float = MIN_SCORE
    candidates: int = MAX_CANDIDATES
    nms_iou: float = MAX_IOU
    nms: str = "within each class"
    detections: int = MAX_DETECTIONS


class ExportedFile(Value):
    """One ONNX file.

    Attributes:
        name: in the folder of the manifest.
        precision: of its weights and maps.
        bytes: its size.
        sha256: its content hash.
        parity: comparison of its outputs with PyTorch's (fp32), or with the fp32 file's (fp16); int8 is compared with
            nothing but its AP, once its outputs are finite on the calibration images.
        calibration: of an int8 file.
        accuracy: whether the next two were measured.
        evaluation: of this file, on the held-out split.
        ap_cost: AP of the fp32 file less that of this one, in [-1, 1].
    """

    name: str
    precision: Precision
    bytes: int
    sha256: str
    parity: ParityRecord | Float16Parity | None
    calibration: Calibration | None = None
    accuracy: Literal["measured", "unmeasured"] = "unmeasured"
    evaluation: Evaluation | None = None
    ap_cost: float | None = None


class Manifest(Value):
    """What the files of one exported detector share.

    Attributes:
        format: version of this layout.
        kind: tells it from other JSON files.
        version: of the product that exported.
        space_id: identity of the space.
        config_id: identity of the config.
        space: the search space of the config.
        config: the architecture.
        profile: the runtime profile whose layout was asked for; None for that of the space.
        layout: that Linears work in, in the graphs of these files; the space says in which they were trained.
        activation: of the weights; a profile that usually has another does not change it.
        classes: names, in the order of the scores.
        category_ids: the id of each class in the data set.
        opset: ONNX operator set.
        preprocessing: what is done before.
        outputs: what each output holds.
        postprocessing: what is left to do.
        weights_sha256: of the checkpoint.
        trained_on: name of the data set.
        evaluated_on: data set and split that accuracy was measured on.
        files: one per precision, fp32 first.
        versions: of the packages that took part.
    """

    format: int = FORMAT
    kind: Literal["exported detector"] = "exported detector"
    version: str
    space_id: str
    config_id: str
    space: SearchSpace
    config: Config
    profile: RuntimeProfile | None
    layout: Layout
    activation: Activation
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    opset: int
    preprocessing: Preprocessing
    outputs: dict[str, str]
    postprocessing: Postprocessing = Postprocessing()
    weights_sha256: str
    trained_on: str
    evaluated_on: str | None
    files: tuple[ExportedFile, ...]
    versions: dict[str, str]


def package_versions() -> dict[str, str]:
    """Return the versions of what turns weights into numbers."""
    return {name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy", "pillow")}


def write_export(folder: Path, manifest: Manifest, contents: dict[str, bytes]) -> None:
    """Write the files, then the manifest; files of an earlier export that it does not list are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_whole(folder / name, content)
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / NAME, text.encode())
    for precision in Precision:
        if precision.file_name not in contents:
            (folder / precision.file_name).unlink(missing_ok=True)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        BadManifest: it is missing, no manifest of an exported detector, or of another version.
    """
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as fault:
        raise BadManifest(path, f"it cannot be read ({fault.strerror})") from fault
    except ValidationError as fault:
        raise BadManifest(
            path, f"it is none of an exported detector, or of another version ({fault.error_count()} fields differ)"
        ) from fault
    if manifest.format != FORMAT:
        raise BadManifest(path, f"its format is {manifest.format}, this version reads {FORMAT}")
    return manifest


def manifest_of(file: Path) -> Manifest | None:
    """Return the manifest beside an ONNX file, None where there is none.

    Raises:
        BadManifest: it is of another file, or of another export of this one.
    """
    path = file.with_name(NAME)
    if not path.exists():
        return None
    manifest = read_manifest(path)
    listed = {entry.name: entry for entry in manifest.files}
    if file.name not in listed:
        raise BadManifest(path, f"it lists {', '.join(listed)}, not {file.name}")
    if file_sha256(file) != listed[file.name].sha256:
        raise BadManifest(path, f"{file.name} is not the file that it was written for")
    return manifest
