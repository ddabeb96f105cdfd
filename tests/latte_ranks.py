"""Train Latte and sample from it as two processes: `python -m tests.latte_ranks TRAIN SAMPLE`, two
pickled configs. They are forked from this one, which has imported all that they need."""

import pickle
import sys
from pathlib import Path

from scripts import sample, train_latte
from tests.processes import begin_ranks

if __name__ == "__main__":
    training, sampling = (pickle.loads(Path(file).read_bytes()) for file in sys.argv[1:])
    for function, config in ((train_latte.run, training), (sample.run, sampling)):
        ranks = begin_ranks(2, function, config)
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            sys.exit(1)
