"""Job kind `profile`: every block of a space timed on a device, published as an edition and calibrated."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from lookup_tables.calibration import Calibration, Point, Source, fit
from nas.config import Config
from nas.macs import gmacs, weights_mib
from nas.named import named_space
from nas.sampling import random_config
from nas.space import SearchSpace
from profiler.wire import Policy
from server.campaign import measure
from server.context import Context
from server.graphs import block_item, export_blocks, export_references, graphs_of, network_item
from server.parameters import ProfileParameters
from server.tasks import network_key

Json = dict[str, Any]
T = TypeVar("T")

EXPORTED = 0.4
"""Share of the job that exporting makes up, the rest is measuring."""

MAX_RUNS = 80
"""Hot runs kept of a block at most."""

DRAWN_PER_REFERENCE = 8
"""Random configs drawn for each reference that is kept."""


def profile(context: Context, parameters: ProfileParameters) -> Json:
    """Measure what the device lacks, publish the table and calibrate it on reference networks."""
    space = named_space(parameters.space, classes=parameters.classes)
    references = reference_configs(space, parameters.references, seed=parameters.seed)
    context.tables.device(parameters.device)
    plan = context.step("plan", lambda: _plan(context, parameters, space))
    context.step("export", lambda: _export(context, parameters, space, references, plan))
    measured = context.step("measure", lambda: _measure(context, parameters, space, references, plan))
    edition = context.step("publish", lambda: _publish(context, parameters, space))
    calibration = context.step("calibrate", lambda: _calibrate(context, space, references, edition, measured))
    return {
        "edition": edition,
        "device": parameters.device,
        "space": space.name,
        "rows": len(space.all_blocks()),
        **calibration,
    }


def reference_configs(space: SearchSpace, count: int, *, seed: int) -> tuple[Config, ...]:
    """Choose networks to measure whole: the largest, the smallest, and random ones spread over the MACs between.

    By turns they have many and few weights for their MACs: only then can the calibration tell the two apart.
    """
    rng = np.random.default_rng(seed)
    chosen = {config.id: config for config in (space.largest(), space.smallest())[:count]}
    drawn = [random_config(space, rng) for _ in range(DRAWN_PER_REFERENCE * max(count - 2, 0))]
    drawn.sort(key=lambda config: gmacs(space.blocks(config)))
    for index in range(count - 2):
        alike = drawn[DRAWN_PER_REFERENCE * index : DRAWN_PER_REFERENCE * (index + 1)]
        alike.sort(key=lambda config: _weights_per_gmac(space, config))
        config = alike[-1 if index % 2 else 0]
        chosen.setdefault(config.id, config)
    return tuple(chosen.values())


def _weights_per_gmac(space: SearchSpace, config: Config) -> float:
    blocks = space.blocks(config)
    return weights_mib(blocks) / gmacs(blocks)


def _plan(context: Context, parameters: ProfileParameters, space: SearchSpace) -> list[str]:
    """Return the keys of the blocks to measure: those the device has no measurement of."""
    blocks = space.all_blocks()
    missing = context.tables.unmeasured(parameters.device, parameters.execution, blocks)
    context.tell(
        "plan",
        f"to measure: {len(missing)} of {len(blocks)} blocks of {space.name}, {parameters.references} whole networks",
    )
    return [block.key for block in missing]


def _export(
    context: Context, parameters: ProfileParameters, space: SearchSpace, references: tuple[Config, ...], plan: list[str]
) -> int:
    wanted = set(plan)
    blocks = [block for block in space.all_blocks() if block.key in wanted]

    def tell(what: str, first: float, last: float) -> Any:  # noqa: ANN401
        def step(done: int, total: int) -> None:
            context.progress(EXPORTED * (first + (last - first) * done / total))
            if done == total or done % max(total // 4, 1) == 0:
                context.tell("exporting", f"{done} of {total} {what} exported")

        return step

    export_blocks(context, blocks, tell=tell("blocks", 0, 0.6))
    export_references(context, space, references, seed=parameters.seed, tell=tell("reference networks", 0.6, 1))
    return len(blocks) + len(references)


def _measure(
    context: Context, parameters: ProfileParameters, space: SearchSpace, references: tuple[Config, ...], plan: list[str]
) -> dict[str, str]:
    policy = Policy(max_hot_runs=MAX_RUNS, min_seconds=parameters.measure_seconds)
    execution, wanted = parameters.execution, set(plan)
    blocks = [block for block in space.all_blocks() if block.key in wanted]
    graphs = graphs_of(context, [*wanted, *map(network_key, references)])
    networks = [(config, graphs[network_key(config)]) for config in references]
    items = spread(
        [block_item(block, graphs[block.key], execution, policy) for block in blocks],
        [network_item(config, graph.sha256, graph.bytes, execution, policy) for config, graph in networks],
    )
    return measure(context, parameters.device, items, share=(EXPORTED, 0.98))


def spread(items: Sequence[T], among: Sequence[T]) -> list[T]:
    """Put `among` between the items at even distances: an agent times items in groups, each needs its references."""
    mixed = list(items)
    for number, one in reversed(list(enumerate(among))):
        mixed.insert((2 * number + 1) * len(items) // (2 * len(among)), one)
    return mixed


def _publish(context: Context, parameters: ProfileParameters, space: SearchSpace) -> str:
    edition = context.tables.publish(parameters.device, parameters.execution, space.all_blocks(), now=context.now())
    context.tell("published", f"table edition {edition}", {"edition": edition})
    return edition


def _calibrate(
    context: Context, space: SearchSpace, references: tuple[Config, ...], edition: str, measured: dict[str, str]
) -> Json:
    """Fit revision 1 on the references; a calibrated edition keeps its corrections, learns of drift and of new ones."""
    table = context.tables.load(edition)
    points = []
    for config in references:
        measurement = measured[network_key(config)]
        measured_ms = context.measured_ms(measurement)
        points.append(Point.of(config.id, space.blocks(config), table, measured_ms, measurement=measurement))

    def choose(known: Sequence[Calibration]) -> Calibration:
        return _recalibrated(known[-1], points) if known else fit(points)

    calibration = context.tables.revise(edition, choose, now=context.now()).calibration
    context.tell(
        "calibrated",
        f"calibration revision {calibration.revision}: {calibration.sentence}",
    )
    return {
        "calibration_revision": calibration.revision,
        "slope": calibration.slope,
        "fetch_ms_per_mib": calibration.fetch_ms_per_mib,
        "margin": calibration.margin,
        "reference_error_percent": calibration.reference_error_percent,
    }


def _recalibrated(newest: Calibration, points: Sequence[Point]) -> Calibration:
    """Return the next revision: with all the drift that known references show, and the new ones with it taken out."""
    seen = newest.drift_of({point.label: point.measured_ms for point in points})
    drift = newest.drift if seen is None else newest.settled_drift(seen, share=1)
    known = {point.label for point in newest.points if point.source is Source.REFERENCE}
    new = [point.model_copy(update={"drift": seen or drift}) for point in points if point.label not in known]
    if not new and drift == newest.drift:
        return newest
    return newest.corrected(*new, drift=drift, measurement=points[-1].measurement)
