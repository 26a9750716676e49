"""Measure how fast the deployed HeatDETR graph runs for the work it does, beside other real-time detectors.

Measures: heatdetr-tiny in the runtime profile of ONNX Runtime on CPUs (`heatdetr@cpu`; with `--profile cpu cuda`
`heatdetr-tiny@cuda` beside it), exported at 640x640, one thread, ONNX Runtime on the CPU; against RT-DETR-R18 and
DETR-R50, built by the package `transformers` (null with a reason where it is missing) and exported by the same PyTorch
exporter at the same opset. Random weights: time does not depend on them. `ms` is the median of the hot runs, timed as
the agent does: interleaved, with emptied caches in between; `spread_pct` is the width of its 95 % interval. MACs of
HeatDETR are those of `nas.macs`, those of the others are counted by PyTorch. Takes ten minutes; `--quick` one.
"""

import random
from importlib.util import find_spec
from time import perf_counter_ns

import torch
from _common import Options, command_line, note, options, report

from nas.macs import gmacs
from nas.named import named_config, named_space
from nas.runtime_profile import RuntimeProfile
from profiler.caches import make_eviction
from profiler.session import open_session
from profiler.timing import measure_group
from profiler.wire import Execution, Policy
from supernet.detector import HeatDETR
from supernet.export import OPSET, export_detector, randomise_detector

IMAGE = (640, 640)
OURS = "heatdetr-tiny"
PEERS = ("rtdetr-r18", "detr-r50")
KEYS = ("ms", "spread_pct", "gmacs", "gmacs_per_s", "reason")

THOROUGH = Policy(min_hot_runs=40, max_hot_runs=120, min_seconds=20)

Network = tuple[bytes, float]
"""A graph file and its gmacs."""


def main() -> None:
    """Export, measure and print."""
    parser = command_line(__doc__)
    known = [profile.value for profile in RuntimeProfile]
    parser.add_argument("--profile", nargs="+", choices=known, default=known[:1], help="runtime profiles to measure")
    arguments = parser.parse_args()
    chosen = options(arguments)
    torch.manual_seed(chosen.seed)
    profiles = {f"{OURS}@{profile}" if place else OURS: profile for place, profile in enumerate(arguments.profile)}
    networks = {name: build_ours(profile) for name, profile in profiles.items()}
    rows: dict[str, dict[str, object]] = {}
    for name in PEERS:
        if find_spec("transformers"):
            networks[name] = build_peer(name)
        else:
            reason = "not measured: the package transformers is not installed"
            rows[name] = dict.fromkeys(KEYS) | {"reason": reason}
    rows = measure(networks, chosen) | rows
    table = [["network", *KEYS], *([name, *map(row.get, KEYS)] for name, row in rows.items())]
    report(chosen, {"image": IMAGE, "threads": 1, "opset": OPSET, "profiles": profiles, **rows}, table)


def build_ours(profile: str) -> Network:
    """Export heatdetr-tiny of a runtime profile."""
    note(f"exporting {OURS}@{profile}")
    space = named_space(f"heatdetr@{profile}", classes=80)
    config = named_config(OURS, space, image=IMAGE)
    torch.manual_seed(0)
    detector = HeatDETR(space, config).eval()
    randomise_detector(detector)
    return export_detector(detector).onnx, gmacs(space.blocks(config))


def build_peer(name: str) -> Network:
    """Export a detector of others."""
    from _peers import count_gmacs, detr_r50, export, rtdetr_r18

    note(f"exporting {name}")
    model = detr_r50() if name == "detr-r50" else rtdetr_r18(IMAGE)
    return export(model, IMAGE, opset=OPSET), count_gmacs(model, IMAGE)


def measure(networks: dict[str, Network], chosen: Options) -> dict[str, dict[str, object]]:
    """Time all networks interleaved, as an agent does."""
    if chosen.out:
        for name, (graph, _) in networks.items():
            (chosen.out / f"{name}.onnx").write_bytes(graph)
    sessions = {name: open_session(graph, Execution(threads=1)) for name, (graph, _) in networks.items()}
    policy = Policy(warmup_runs=3, min_hot_runs=5, max_hot_runs=8) if chosen.quick else THOROUGH
    note("measuring")
    timings = measure_group(
        sessions, policy, clock=perf_counter_ns, rng=random.Random(chosen.seed), evict=make_eviction()
    )
    ordered = {name: timings[name] for name in networks}
    return {
        name: {
            "ms": timing.hot_ms,
            "spread_pct": 100 * (timing.high_ms - timing.low_ms) / timing.hot_ms,
            "gmacs": networks[name][1],
            "gmacs_per_s": networks[name][1] / timing.hot_ms * 1000,
            "hot_ms": [ns / 1e6 for ns in timing.hot_ns],
        }
        for name, timing in ordered.items()
    }


if __name__ == "__main__":
    main()
