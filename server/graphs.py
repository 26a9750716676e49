"""Exported graphs by what they compute: each is exported once, whoever asks for it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import Any

from sqlalchemy import select

from nas.blocks import Block
from nas.config import Config
from nas.space import SearchSpace
from profiler.wire import Execution, Policy
from server.context import Context, Futile
from server.database import Graph, reading, writing
from server.errors import UnknownBlob
from server.tasks import Item, network_key

Json = dict[str, Any]


def find_graphs(context: Context, keys: Iterable[str]) -> dict[str, Graph]:
    """Return the graphs that are exported already, by key; one whose blob is gone counts as missing."""
    wanted = list(dict.fromkeys(keys))
    with reading(context.database) as session:
        found = session.scalars(select(Graph).where(Graph.key.in_(wanted))).all()
    return {graph.key: graph for graph in found if context.blobs.has(graph.sha256)}


def graphs_of(context: Context, keys: Sequence[str]) -> dict[str, Graph]:
    """Return the exported graph of each key.

    Raises:
        UnknownBlob: the file of one is gone since it was exported.
    """
    found = find_graphs(context, keys)
    missing = [key for key in keys if key not in found]
    if missing:
        raise UnknownBlob(
            f"{len(missing)} of {len(keys)} exported graphs are gone from {context.settings.blobs}, such as "
            f"{missing[0]}: submit the job again, it exports them anew"
        )
    return found


def export_blocks(context: Context, blocks: Sequence[Block], *, tell: Callable[[int, int], None]) -> None:
    """Export the blocks that have no graph yet, in several child processes."""
    known = find_graphs(context, [block.key for block in blocks])
    missing = [block.model_dump(mode="json") for block in blocks if block.key not in known]
    parts = context.settings.export_processes
    orders = [{"blocks": missing[part::parts]} for part in range(parts)]
    _export(context, "server.heavy.graphs:export_block_graphs", orders, total=len(missing), tell=tell)


def export_references(
    context: Context, space: SearchSpace, configs: Sequence[Config], *, seed: int, tell: Callable[[int, int], None]
) -> None:
    """Export reference networks, with seeded random weights, that have no graph yet."""
    known = find_graphs(context, [network_key(config) for config in configs])
    missing = [config.model_dump(mode="json") for config in configs if network_key(config) not in known]
    parts = context.settings.export_processes
    fixed = {"space": space.model_dump(mode="json"), "seed": seed}
    orders = [{**fixed, "configs": missing[part::parts]} for part in range(parts)]
    _export(context, "server.heavy.graphs:export_references", orders, total=len(missing), tell=tell)


def block_item(block: Block, graph: Graph, execution: Execution, policy: Policy) -> Item:
    """Return the task item of a block."""
    return Item(block.key, block.label, graph.sha256, graph.bytes, execution, policy, block)


def network_item(config: Config, sha256: str, size: int, execution: Execution, policy: Policy) -> Item:
    """Return the task item of a network measured whole."""
    return Item(network_key(config), f"network {config.id}", sha256, size, execution, policy)


def _export(
    context: Context, task: str, orders: Sequence[Mapping[str, Any]], *, total: int, tell: Callable[[int, int], None]
) -> None:
    if not total:
        return
    lock, done = Lock(), 0

    def keep(message: Json) -> None:
        nonlocal done
        if message["type"] == "item":
            with lock:
                _store(context, message)
                done += 1
                tell(done, total)

    common = {"blobs": str(context.settings.blobs), "threads": 1}
    work = [{**order, **common} for order in orders if order.get("blocks") or order.get("configs")]
    failed = Event()

    def run(order: Mapping[str, Any]) -> None:
        try:
            context.child(task, order, keep, is_futile=failed.is_set)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(len(work)) as pool:
        running = [pool.submit(run, order) for order in work]
    errors = [error for error in (finished.exception() for finished in running) if error is not None]
    if errors:
        # Whoever was stopped for another's failure has nothing to say about it.
        raise next((error for error in errors if not isinstance(error, Futile)), errors[0])


def _store(context: Context, item: Json) -> None:
    with writing(context.database) as session:
        session.merge(
            Graph(
                key=item["key"],
                sha256=item["sha256"],
                bytes=item["bytes"],
                label=item["label"],
                parity=item["parity"],
                created_at=context.now(),
            )
        )
