"""One training without a notebook, or one process of a training on several devices. Run it in the repository:

python notebooks/cluster/train.py '{"profile": "small", "method": "full"}'                                      one device
accelerate launch --multi_gpu --num_processes 2 notebooks/cluster/train.py '{"profile": "small", "method": "full"}'
torchrun --nproc_per_node 2 notebooks/cluster/train.py '{"profile": "small", "method": "full"}'

The JSON holds a profile, a method and any changes to their settings. All three write the same record.
"""

import argparse
import json
import os
import sys
import traceback

from helpers.data import prepare
from helpers.engine import distributed
from helpers.evaluation import evaluate
from helpers.models import load_tokenizer
from helpers.settings import settings_for
from helpers.sources import resolve
from helpers.training import train


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on the devices that a launcher gave.")
    parser.add_argument("settings", help='JSON, such as {"profile": "llama2-7b", "method": "full", "max_steps": 100}')
    parser.add_argument("--evaluate", action="store_true", help="score the result on the test rows")
    arguments = parser.parse_args()
    given = json.loads(arguments.settings)
    world = distributed.join()
    settings = settings_for(given.pop("profile"), given.pop("method"), **given)
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0  # on each machine: fetches the model where it is not there yet
    if not first:
        distributed.wait()
    data = prepare(settings, load_tokenizer(resolve(settings)))
    if first:
        distributed.wait()
    trained = train(settings, data, world=world)
    if world.main:
        if arguments.evaluate:
            trained.record.evaluation = evaluate(trained.model, trained.tokenizer, data, settings)
        trained.record.save(trained.folder)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, RuntimeError) as error:
        traceback.print_exc()
        sys.stderr.write(f"\nerror: {error}\n")  # in one piece: several processes write here
        sys.exit(1)
