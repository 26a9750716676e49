"""What can go wrong in the service, and what the caller may do about it.

ServerError
├── UpgradeRequired    an agent or client speaks a protocol this server does not: install the same version
├── UnusableFolder     the data folder cannot be written: choose another
├── DamagedDatabase    the database file is none: restore it, or choose another data folder
├── NewerDatabase      the database was written by a newer version: upgrade, or use another data folder
├── UnknownAgent       no agent of that id: enrol
├── UnknownTask        no task of that id
├── UnknownLease       no lease of that id
├── LeaseLost          the lease expired or was released: drop its tasks and lease again
├── DuplicateIdentity  another agent of the same machine and name is at work: stop one of them
├── ResultRefused      a result or failure from where the task was not leased, or of an attempt that never was
├── ResultMismatch     a result that is not what its id says, or not what its task asks for
├── NotAuthenticated   no valid bearer token: send the one of the data folder
├── DamagedToken       the token file holds no token: delete it, a new one is made
├── UnknownJob         no job of that id
├── UnknownSupernet    no supernet of that id: train one
├── UnknownArtifact    the job has no file of that name
├── JobNotFinished     the job has no result: wait for it, or see why it failed
├── IdempotencyConflict  the key was used for another request: choose a new one
├── JobCancelled       the job was cancelled while it worked
├── ChildFailed        heavy work failed in its child process
├── StepFailed         a step of a job failed, now or before its worker died
├── WrongGraph         a file is of another config than the answer it was made for: submit the job again
├── TasksFailed        the device could not measure some graphs: see why, mend, submit again
├── WorkerRunning      another worker works on the data folder: one is enough
├── PortTaken          the server's address is in use: choose another
├── UnknownBlob        nothing is stored under that hash
└── DamagedBlob        what is stored under a hash has another one: restore the file from a backup
"""


class ServerError(Exception):
    """Base of every error of the package."""


class UpgradeRequired(ServerError):
    """The other side speaks a protocol version this server does not."""


class UnusableFolder(ServerError):
    """The data folder cannot be written."""


class DamagedDatabase(ServerError):
    """The file of the database holds something else."""


class NewerDatabase(ServerError):
    """The database has a revision this version does not know."""


class UnknownAgent(ServerError):
    """No agent has this id."""


class UnknownTask(ServerError):
    """No task has this id."""


class UnknownLease(ServerError):
    """No lease has this id."""


class LeaseLost(ServerError):
    """The lease does not hold any more."""


class DuplicateIdentity(ServerError):
    """An agent asks for work while one of the same identity is at work."""


class ResultRefused(ServerError):
    """A result or failure is of another device, or of an attempt that was never handed out."""


class ResultMismatch(ServerError):
    """A result contradicts its id, or is of another graph or execution than its task."""


class UnknownBlob(ServerError):
    """The blob store holds nothing under this hash."""


class DamagedBlob(ServerError):
    """A stored file does not have the hash it is stored under."""


class NotAuthenticated(ServerError):
    """The request carries no valid bearer token."""


class DamagedToken(ServerError):
    """The token file of the data folder holds no token."""


class UnknownJob(ServerError):
    """No job has this id."""


class UnknownSupernet(ServerError):
    """No supernet has this id."""


class UnknownArtifact(ServerError):
    """The job has no file of this name."""


class JobNotFinished(ServerError):
    """The job has no result."""


class IdempotencyConflict(ServerError):
    """An idempotency key was used for two different requests."""


class JobCancelled(ServerError):
    """The job was cancelled while it worked."""


class ChildFailed(ServerError):
    """Heavy work failed in its child process.

    Attributes:
        kind: class name of the error there.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        self.kind = kind
        super().__init__(message)


class StepFailed(ServerError):
    """A step of a job failed: the same error whether it has just happened or was kept from an earlier run of the job.

    Attributes:
        kind: class name of the error in it.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        self.kind = kind
        super().__init__(message)


class WrongGraph(ServerError):
    """A deployed file is not of the config that it is to be."""


class TasksFailed(ServerError):
    """A device could not measure some of the graphs a job needs."""


class PortTaken(ServerError):
    """Nothing can listen at the server's address."""


class WorkerRunning(ServerError):
    """Another worker holds the data folder."""
