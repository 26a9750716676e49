"""From the results of jobs, as the REST interface gives them, to the answers and figures of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nas.blocks import Block
from nas.budgets import Budget
from nas.errors import ThinningExhausted
from nas.exact import fastest
from nas.importance import Importance
from nas.latency import LatencyModel
from nas.quality import AdditiveScore
from nas.space import SearchSpace
from nas.thinning import best_path, thin
from server.figures import BlockTime, Point, Solved, Turn, front_figure, latency_heat_map, trail_figure
from server.report import Answer, Section, render

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Reach:
    """The target FPS that thinning can meet with room for the calibration's margin.

    Attributes:
        slowest_fps: the supernet's best path; asking for less changes nothing.
        fastest_fps: where the reductions end.
    """

    slowest_fps: float
    fastest_fps: float

    def at(self, share: float) -> float:
        """Return the target at a share of the way, 0 (slowest) to 1 (fastest)."""
        return self.slowest_fps + share * (self.fastest_fps - self.slowest_fps)


def feasible_range(space: SearchSpace, importance: Importance, latency: LatencyModel) -> Reach:
    """Thin as far as it goes and tell between which FPS the answers lie."""
    slowest_ms = latency.bound_ms(space.blocks(best_path(space, importance)))
    limit_ms = latency.bound_ms(space.blocks(fastest(space, latency).config))
    score = AdditiveScore.from_importance(space, importance)
    try:
        trail = thin(space, latency, importance, score, Budget(latency_ms=limit_ms), stages="all")
        reached_ms = trail.latency_ms
    except ThinningExhausted as error:
        reached_ms = error.reached_ms
    return Reach(slowest_fps=1000 / slowest_ms, fastest_fps=1000 / (reached_ms * (1 + latency.margin)))


def latency_model(rows: Sequence[Json], table: Json) -> LatencyModel:
    """Rebuild the latency model of a served table edition and its newest calibration."""
    calibration = table["calibration"]
    return LatencyModel(
        {Block.model_validate(row["block"]): row["latency_ms"] for row in rows},
        fetch_ms_per_mib=calibration["fetch_ms_per_mib"],
        slope=calibration["slope"],
        margin=calibration["margin"],
    )


def answer_of(result: Json) -> Answer:
    """Read the row of the answers' table from the result of a thinning job."""
    last = result["rounds"][-1]
    return Answer(
        target_fps=result["target_fps"],
        predicted_fps=last["predicted_fps"],
        measured_fps=last.get("measured_fps"),
        steady_error_pct=last.get("steady_error_percent"),
        ap50=last.get("ap50"),
        gmacs=result["gmacs"],
        config_id=result["config_id"],
        rounds=len(result["rounds"]),
        met=last.get("met"),
        evidence=_evidence(result),
    )


def write_report(path: Path, results: Sequence[Json], *, rows: Sequence[Json], facts: Mapping[str, str]) -> Path:
    """Write the report of some thinning jobs on one table; return where it is."""
    sections = [
        Section(
            "What blocks cost on this device",
            "Latency of each kind of block at each width, measured alone, in milliseconds. Empty: not in the space.",
            latency_heat_map(map(_block_time, rows)),
        )
    ]
    if results:
        sections += [_front_section(results), _trail_section(results[-1])]
    stated = {
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "HeatNAS": version("heatnas"),
        **facts,
    }
    text = render(
        "HeatNAS: detectors at their target FPS", facts=stated, answers=[*map(answer_of, results)], sections=sections
    )
    path.write_text(text)
    return path


def _front_section(results: Sequence[Json]) -> Section:
    fronts = {result["calibration_revision"]: [*map(_point, result["front"])] for result in results}
    return Section(
        "The Pareto front and the answers",
        "The line joins the configs that no other beats in both predicted speed and score, by the exact solver. "
        "A star is the best config for a target, a dot the answer, a diamond the same answer measured whole. Where an "
        "answer has corrected the calibration, the next one was found on the front of that revision.",
        front_figure(fronts, [*map(_solved, results)]),
    )


def _trail_section(result: Json) -> Section:
    turns = [Turn(turn["label"], _point(turn)) for turn in result["trail"]]
    return Section(
        f"How {result['target_fps']:.2f} FPS was reached",
        "Each row is one move of the thinning, from the supernet's best path down to the answer. Bars are predicted "
        f"latencies, the dashed rule is the target of {1000 / result['target_fps']:.2f} ms, the line is the score in "
        "percent of the best.",
        trail_figure(turns, target_ms=1000 / result["target_fps"]),
    )


def _solved(result: Json) -> Solved:
    last = result["rounds"][-1]
    return Solved(
        label=f"{result['target_fps']:.1f} FPS",
        answer=Point(last["predicted_ms"], last["score"]),
        optimum=_point(result["optimum"]),
        measured_ms=last.get("measured_ms"),
    )


def _evidence(result: Json) -> dict[str, str]:
    last, importance = result["rounds"][-1], result["importance"]
    return {
        "table edition": str(result["edition"]),
        "calibration": f"revision {result['calibration_revision']}",
        "importance": f"supernet {result['supernet']}: {importance['steps']} steps on {importance['data']}",
        **_strides(result),
        "solver": str(result["solver"]),
        "gap to the exact optimum": f"{result['gap']:.2f} points of the score",
        **{f"round {round_['round']}": _round(round_) for round_ in result["rounds"]},
        "model.onnx": f"SHA-256 {last['onnx_sha256']}" if "onnx_sha256" in last else "not exported: not verified",
    }


def _strides(result: Json) -> dict[str, str]:
    """Say what each prediction stride was worth; a space with one has nothing to say."""
    if not result.get("stride_ap50"):  # results of earlier versions lack it
        return {}
    found = ", ".join(f"{ap50:.3f} at {stride}" for stride, ap50 in result["stride_ap50"].items())
    doubt = "" if result["strides_told_apart"] else "; none found anything: not told apart, and all priced alike"
    return {"AP50 of the prediction strides": f"{found} (of the supernet, on training images){doubt}"}


def _round(round_: Json) -> str:
    confidence = f"{100 * round_['confidence']:.0f} % confidence"
    predicted = (
        f"{round_['config_id']}, calibration revision {round_['calibration_revision']}: predicted "
        f"{round_['predicted_fps']:.2f} FPS, at least {round_['bound_fps']:.2f} with {confidence}"
    )
    if "measured_fps" not in round_:
        return predicted
    return f"{predicted}; measured {round_['measured_fps']:.2f} FPS, {round_['error_percent']:+.1f} %"


def _block_time(row: Json) -> BlockTime:
    return BlockTime(row["kind"], row["channels_out"], row["height"], row["width"], row["latency_ms"])


def _point(point: Json) -> Point:
    return Point(point["latency_ms"], point["score"])
