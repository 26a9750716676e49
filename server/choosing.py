"""Which table a thinning is answered from: chosen by the request where it is judged, and by the job that it became."""

from lookup_tables.coverage import missing_blocks, profile_command
from lookup_tables.errors import UnknownEdition
from lookup_tables.store import TableStore
from lookup_tables.table import LookupTable
from nas.errors import MissingBlocks
from nas.space import SearchSpace
from server.parameters import ThinParameters


def choose_table(tables: TableStore, parameters: ThinParameters, space: SearchSpace) -> LookupTable:
    """Load the edition that was asked for, or the newest of the device that covers the space.

    Raises:
        UnknownDevice: there is no device of that name.
        UnknownEdition: there is no such edition, it is of another device or thread count, or nothing was published yet.
        MissingBlocks: blocks of the space have no row, in the edition asked for or in the newest.
    """
    classes = space.structure.classes
    command = profile_command(parameters.device, space.name, classes=classes, threads=parameters.threads)
    edition = _newest(tables, parameters, space, command) if parameters.edition is None else parameters.edition
    table = tables.load(edition)
    if (table.device, table.execution) != (parameters.device, parameters.execution):
        raise UnknownEdition(
            f"edition {table.edition} is the table of {table.device} with {table.execution.threads} thread(s), not of "
            f"{parameters.device} with {parameters.threads}: choose one of GET /v1/tables?device={parameters.device}"
        )
    missing = missing_blocks(table, space.all_blocks())
    if missing:
        raise MissingBlocks(missing, command=command)
    return table


def _newest(tables: TableStore, parameters: ThinParameters, space: SearchSpace, command: str) -> str:
    """Find the newest edition that covers the space; where none does the newest of all, so that its gaps are named."""
    device, execution = parameters.device, parameters.execution
    newest = tables.editions(device=device, execution=execution, limit=1)
    if not newest:
        raise UnknownEdition(
            f"device {device!r} has no table with {parameters.threads} thread(s): measure one with `{command}`"
        )
    try:
        return tables.latest(device, execution, space.all_blocks())
    except UnknownEdition:
        return newest[0].id
