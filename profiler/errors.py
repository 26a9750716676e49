"""What can go wrong on a device, and what the person in front of it may do about it.

ProfilerError
├── RuntimeMissing       no ONNX Runtime is installed: install one
├── GraphRefused         a graph that is not run on this device
│   ├── HashMismatch     its bytes are not the ones that were announced
│   ├── UnsafeGraph      it asks for files beside itself
│   ├── UnsupportedGraph this runtime or provider cannot run it
│   └── GraphTooBig      it needs more memory than there is
├── ServerError          a talk with the server failed
│   ├── ServerUnreachable  no sensible answer, even after retries
│   ├── NotAuthorised      the token is missing, wrong or of another server
│   ├── UpgradeRequired    the two sides share no protocol version
│   ├── LeaseLost          the lease is no longer ours: drop its tasks
│   ├── DuplicateIdentity  another agent of this machine and name is at work: stop one of them
│   └── RequestRefused     any other refusal, with the server's own words
├── MeasuringFailed      the measuring process does not start on this device
└── JournalError         the state folder cannot be used: in use, damaged, or from a newer version
"""


class ProfilerError(Exception):
    """Base of every error of the package."""


class RuntimeMissing(ProfilerError):
    """No ONNX Runtime can be imported."""


class GraphRefused(ProfilerError):
    """A graph cannot, or must not, be run on this device."""


class HashMismatch(GraphRefused):
    """The bytes of a graph are not the announced ones."""


class UnsafeGraph(GraphRefused):
    """A graph asks for data outside its own bytes."""


class UnsupportedGraph(GraphRefused):
    """The runtime or its provider cannot run the graph."""


class GraphTooBig(GraphRefused):
    """The runtime ran out of memory on the graph."""


class ServerError(ProfilerError):
    """A talk with the server failed."""


class ServerUnreachable(ServerError):
    """The server gave no sensible answer within the client's patience."""


class NotAuthorised(ServerError):
    """The server refused the token."""


class UpgradeRequired(ServerError):
    """Agent and server share no protocol version."""


class LeaseLost(ServerError):
    """The lease expired, was released or is unknown to the server."""


class DuplicateIdentity(ServerError):
    """The server says that an agent of this machine and name is at work."""


class RequestRefused(ServerError):
    """The server refused a request for good; sending it again would change nothing.

    Attributes:
        status: the HTTP status of the refusal.
        error: the server's name of it; None where the answer is none of a HeatNAS server, such as a proxy's.
    """

    def __init__(self, message: str, *, status: int, error: str | None = None) -> None:
        self.status, self.error = status, error
        super().__init__(message)


class MeasuringFailed(ProfilerError):
    """The measuring process does not even start."""


class JournalError(ProfilerError):
    """The state folder of the agent cannot be used."""
