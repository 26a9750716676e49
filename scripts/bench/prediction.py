"""Measure how well a lookup table predicts whole networks that it has never seen.

Measures: a table and its calibration, made on this machine by the product itself (server, worker and agent: a profile
job), against random configs of its space, exported and timed whole by the agent's protocol. They are measured in
two passes; `noise_mape_pct` is the mean difference between the passes, below which no prediction can be told from
another. `interval90_cover_pct` is the share of networks measured below the calibration's one-sided 90 % bound. One
thread, then as many as `--threads`; `int8` is null, since tables of that precision are not made yet. Takes about ten
minutes for heatdetr-nano, half an hour for heatdetr-edge; `--quick`: one thread, four networks, one reference pass.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns

import numpy as np
from _common import Options, command_line, note, options, report
from scipy.stats import kendalltau

from nas.config import Config
from nas.latency import LatencyModel
from nas.named import SPACE_HELP, named_space
from nas.sampling import random_config
from nas.space import SearchSpace
from profiler.caches import make_eviction
from profiler.session import open_session
from profiler.timing import measure_group
from profiler.wire import Execution, Policy
from server.client import Client
from server.local_stack import LocalStack
from server.parameters import MEASURE_SECONDS
from server.run_report import latency_model
from server.verification import MAX_RUNS, MIN_RUNS
from supernet.detector import HeatDETR
from supernet.export import export_detector, randomise_detector

DEVICE = "benchmark"
COLUMNS = (
    "mape_pct", "within5_pct", "within10_pct", "max_pct", "kendall_tau", "interval90_cover_pct", "noise_mape_pct",
    "networks", "gap_minutes",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A network: predicted, and measured in two passes."""

    config: Config
    predicted_ms: float
    bound_ms: float
    first_ms: float
    second_ms: float

    @property
    def error_pct(self) -> float:
        """Prediction over the first pass, as a deviation in percent."""
        return 100 * (self.predicted_ms / self.first_ms - 1)

    @property
    def noise_pct(self) -> float:
        """Second pass over the first, as a deviation in percent."""
        return 100 * (self.second_ms / self.first_ms - 1)


def main() -> None:
    """Profile, measure and print."""
    parser = command_line(__doc__)
    parser.add_argument("--space", default="heatdetr-nano", help=SPACE_HELP)
    parser.add_argument("--networks", type=int, default=20, help="random configs to measure")
    parser.add_argument("--threads", type=int, default=2, help="threads of the second table")
    arguments = parser.parse_args()
    chosen = options(arguments)
    space = named_space(arguments.space, classes=3)
    configs = random_configs(space, 4 if chosen.quick else arguments.networks, chosen.seed)
    note(f"exporting {len(configs)} networks of {space.name}")
    graphs = {config.id: export_detector(random_detector(space, config)).onnx for config in configs}
    results: dict[str, object] = {
        "space": space.name,
        "int8": None,
        "int8_reason": "no table of this precision is made",
    }
    table: list[list[object]] = [["threads", *COLUMNS]]
    with tempfile.TemporaryDirectory() as temporary, LocalStack(chosen.out or Path(temporary)) as stack:
        stack.serve()
        stack.run_agent(DEVICE)
        for threads in (1,) if chosen.quick else (1, arguments.threads):
            found = measure(stack, space, configs, graphs, threads=threads, chosen=chosen)
            results[f"{threads}t"] = found
            table.append([threads, *map(found.get, COLUMNS)])
    report(chosen, results, table)


def random_detector(space: SearchSpace, config: Config) -> HeatDETR:
    """Build a detector with weights as if trained: fresh ones would switch the residual branches off."""
    detector = HeatDETR(space, config).eval()
    randomise_detector(detector)
    return detector


def random_configs(space: SearchSpace, count: int, seed: int) -> list[Config]:
    """Draw distinct legal configs."""
    rng, drawn = np.random.default_rng(seed), dict[str, Config]()
    while len(drawn) < count:
        config = random_config(space, rng)
        drawn[config.id] = config
    return list(drawn.values())


def measure(
    stack: LocalStack,
    space: SearchSpace,
    configs: Sequence[Config],
    graphs: dict[str, bytes],
    *,
    threads: int,
    chosen: Options,
) -> dict[str, object]:
    """Make a table with this many threads and compare its predictions with two passes over the networks."""
    with stack.client() as client:
        model, revision = make_table(client, space, threads, chosen)
    made = time.monotonic()
    execution = Execution(threads=threads)
    note(f"measuring {len(configs)} networks twice, {threads} thread(s)")
    passes = [measure_pass(graphs, execution, chosen, seed=chosen.seed + number) for number in range(2)]
    measured = [
        Measured(
            config=config,
            predicted_ms=model.predict_ms(space.blocks(config)),
            bound_ms=model.bound_ms(space.blocks(config)),
            first_ms=passes[0][config.id],
            second_ms=passes[1][config.id],
        )
        for config in configs
    ]
    return summary(measured) | {
        "gap_minutes": (time.monotonic() - made) / 60,
        "calibration_revision": revision,
        "slope": model.slope,
        "margin": model.margin,
        "points": [
            {"config": one.config.id, "predicted_ms": one.predicted_ms, "passes_ms": [one.first_ms, one.second_ms]}
            for one in measured
        ],
    }


def make_table(client: Client, space: SearchSpace, threads: int, chosen: Options) -> tuple[LatencyModel, int]:
    """Have the product measure the space on this machine; return how its table predicts."""
    note(f"profiling {space.name} with {threads} thread(s)")
    order = {
        "device": DEVICE,
        "space": space.name,
        "threads": threads,
        "seed": chosen.seed,
        "measure_seconds": seconds(chosen),
    }
    job = client.submit("profile", order)
    told = [0.0]

    def on_progress(share: float) -> None:
        if share - told[0] >= 0.1:
            told[0] = share
            note(f"  {share:.0%}")

    ended = client.follow(job.id, on_event=lambda _: None, on_progress=lambda seen: on_progress(seen.progress))
    edition = client.outcome(ended)["edition"]
    table = client.edition(edition)
    return latency_model(client.rows(edition), table), table["calibration"]["revision"]


def seconds(chosen: Options) -> float:
    """Return the shortest time of a pass, and of each group of graphs in the table."""
    return 1.0 if chosen.quick else MEASURE_SECONDS


def measure_pass(graphs: dict[str, bytes], execution: Execution, chosen: Options, *, seed: int) -> dict[str, float]:
    """Time all networks interleaved; return the hot median of each in milliseconds."""
    sessions = {name: open_session(graph, execution) for name, graph in graphs.items()}
    rng = random.Random(seed)
    policy = Policy(min_hot_runs=MIN_RUNS, max_hot_runs=MAX_RUNS, min_seconds=seconds(chosen))
    timings = measure_group(sessions, policy, clock=perf_counter_ns, rng=rng, evict=make_eviction())
    return {name: timing.hot_ms for name, timing in timings.items()}


def summary(measured: Sequence[Measured]) -> dict[str, object]:
    """Reduce to the figures that are quoted."""
    errors = [abs(one.error_pct) for one in measured]
    total = len(measured)
    order = kendalltau([one.predicted_ms for one in measured], [one.first_ms for one in measured])
    return {
        "mape_pct": statistics.fmean(errors),
        "within5_pct": 100 * sum(error <= 5 for error in errors) / total,
        "within10_pct": 100 * sum(error <= 10 for error in errors) / total,
        "max_pct": max(errors),
        "kendall_tau": float(order.statistic),
        "interval90_cover_pct": 100 * sum(one.first_ms <= one.bound_ms for one in measured) / total,
        "noise_mape_pct": statistics.fmean(abs(one.noise_pct) for one in measured),
        "networks": total,
    }


if __name__ == "__main__":
    main()
