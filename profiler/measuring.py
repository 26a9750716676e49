"""The measuring process: `python -m profiler.measuring MARKER`, started and supervised by the agent.

A graph is foreign code as far as crashes go; here it can only take this process with it. The process dies with its
parent: by a signal on Linux, and everywhere because the pipe from the parent ends.
"""

import contextlib
import ctypes
import gc
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from profiler.caches import make_eviction
from profiler.errors import GraphRefused, GraphTooBig, HashMismatch
from profiler.pipe import Advanced, Drop, Finished, Marker, Measured, Order, Ready, Refused
from profiler.session import Session, check_runtime, open_session
from profiler.timing import Context, Progress, Watch, measure_group
from profiler.wire import FailureClass, Message, Timing

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Measure the one group that is ordered on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the agent decides
    _die_with_parent()
    _die_first_when_memory_runs_out()
    up = _take_standard_output()
    marker_path = Path(sys.argv[1])
    check_runtime()
    os.chdir(marker_path.parent)
    order = Order.model_validate_json(sys.stdin.buffer.readline())
    dropped: set[str] = set()
    threading.Thread(target=_follow_parent, args=(sys.stdin.buffer, dropped), daemon=True).start()
    _tell(up, Ready())
    _measure(order, Marker(marker_path), dropped, lambda message: _tell(up, message))
    _tell(up, Finished())


def refusal(key: str, error: GraphRefused) -> Refused:
    """Say which class of failure a refused graph is."""
    match error:
        case HashMismatch():
            failure = FailureClass.HASH_MISMATCH
        case GraphTooBig():
            failure = FailureClass.OUT_OF_MEMORY
        case _:
            failure = FailureClass.UNSUPPORTED
    return Refused(key=key, failure=failure, message=str(error))


def _measure(order: Order, marker: Marker, dropped: set[str], tell: Callable[[Message], None]) -> None:
    def on_result(key: str, timing: Timing, context: Context) -> None:
        circumstances = {**context, "seed": float(order.seed), "group_size": float(len(order.items))}
        tell(Measured(key=key, timing=timing, context=circumstances))

    def on_progress(progress: Progress) -> None:
        tell(Advanced(done=progress.done, total=progress.total, seconds_left=progress.seconds_left))

    sessions = _open_all(order, marker, dropped, tell)
    gc.collect()
    gc.disable()  # a collection in the middle of a run would be measured
    measure_group(
        sessions,
        order.policy,
        clock=time.perf_counter_ns,
        rng=random.Random(order.seed),  # noqa: S311  an order of visits, no secret
        evict=make_eviction(),
        watch=Watch(
            visiting=marker.write,
            progress=on_progress,
            result=on_result,
            refused=lambda key, error: tell(refusal(key, error)),
            is_dropped=dropped.__contains__,
        ),
    )


def _open_all(order: Order, marker: Marker, dropped: set[str], tell: Callable[[Message], None]) -> dict[str, Session]:
    sessions: dict[str, Session] = {}
    for item in order.items:
        if item.key in dropped:
            continue
        marker.write(item.key)
        try:
            sessions[item.key] = open_session(Path(item.path).read_bytes(), order.execution, sha256=item.sha256)
        except GraphRefused as error:
            tell(refusal(item.key, error))
        tell(Advanced(done=0, total=len(order.items), seconds_left=None))
    return sessions


def _tell(up: BinaryIO, message: Message) -> None:
    up.write(message.model_dump_json().encode() + b"\n")
    up.flush()


def _take_standard_output() -> BinaryIO:
    """Keep the pipe for events alone: whatever native code prints goes to standard error."""
    up = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return up


def _follow_parent(pipe: BinaryIO, dropped: set[str]) -> None:
    for line in pipe:
        dropped.add(Drop.model_validate_json(line).key)
    os._exit(1)


def _die_with_parent() -> None:
    """Have Linux kill this process with its parent, even when the parent is killed itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _die_first_when_memory_runs_out() -> None:
    """Have Linux take this process, not the agent, when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
