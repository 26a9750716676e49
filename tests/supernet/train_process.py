"""One of several training processes: `torchrun ... train_process.py DATA OUT [STOP]`; the first writes its losses.

With STOP, all of them end without a word after that step, as if the machine had lost its power.
"""

import json
import os
import sys
from pathlib import Path

from supernet.detector_training import train_detector
from supernet.processes import joined
from supernet.training_run import Progress
from tests.supernet.tiny_space import TINY
from tests.supernet.trainings import FROZEN, splits


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    stop = int(sys.argv[3]) if len(sys.argv) > 3 else None
    losses: list[float] = []

    def note(progress: Progress) -> None:
        losses.append(progress.loss)
        if progress.step == stop:
            os._exit(9)

    with joined() as processes:
        train_detector(TINY, TINY.largest(), splits(data), out, recipe=FROZEN, processes=processes, progress=note)
        if processes.is_first:
            (out / "losses.json").write_text(json.dumps([processes.size, *losses]))


if __name__ == "__main__":
    main()
