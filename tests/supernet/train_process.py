"""One of several training processes: `torchrun ... train_process.py DATA OUT`; the first writes its losses."""

import json
import sys
from pathlib import Path

from supernet.detector_training import train_detector
from supernet.processes import joined
from supernet.training_run import Progress
from tests.supernet.tiny_space import TINY
from tests.supernet.trainings import FROZEN, splits


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    losses: list[float] = []

    def note(progress: Progress) -> None:
        losses.append(progress.loss)

    with joined() as processes:
        train_detector(TINY, TINY.largest(), splits(data), out, recipe=FROZEN, processes=processes, progress=note)
        if processes.is_first:
            (out / "losses.json").write_text(json.dumps([processes.size, *losses]))


if __name__ == "__main__":
    main()
