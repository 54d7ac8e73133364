"""Train a small separator with MultiL1SNRDBLoss, and show what it learnt.

python examples/train_separator.py                      # synthesised stems, about a minute
python examples/train_separator.py --stems DIR          # one subfolder of audio per stem
torchrun --nproc-per-node 2 examples/train_separator.py # several processes, CPU or GPU
"""

import argparse
import sys
from collections.abc import Sequence

from separator.config import Config, InputError, add_options
from separator.report import table, write_report
from separator.stems import HELD_OUT, TRAIN, open_stems
from separator.training import join_world, pick_device, train


def run(config: Config) -> None:
    """Train, then measure and draw the result in the first process."""
    with join_world(pick_device(config.device)) as world:
        stems = open_stems(config)
        trainer = train(config, world, stems[TRAIN])
        if world.rank == 0:
            scores = write_report(trainer, stems[HELD_OUT])
            print(f"\n{table(scores)}\n\nSNR over {config.held_out} mixtures not trained on;")
            print(f"checkpoint, pictures and audio are in {config.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    try:
        run(Config(**vars(parser.parse_args(arguments))))
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
