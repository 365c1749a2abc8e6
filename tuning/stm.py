"""Search STM's hyperparameters and parts with Ray Tune.

    python tuning/stm.py --trials 6 --data shards/pseudo shards/rendered --validation shards/validation \
        --stages images bl30k

Copy this file to search another space. `SPACE` is in Ray Tune's own words, and each key is a setting of all stages
(`learning_rate`, `sampling.crop`), of one (`videos.power`, or `last.power` whichever is last), a factor on what a
stage has (`times.learning_rate`), a part of the network (`reader`, `backbone`), or `memory_every`, how often a frame is
kept at test. The ranges suit nano.
"""

from __future__ import annotations

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro
from ray import tune

from vosforge.search.program import SweepOptions, search

SPACE = {
    "backbone": tune.choice(["test_resnet", "test_efficientnet"]),  # timm's, of nano's size
    "reader": tune.choice(["dense", "topk", "kernel"]),  # 2.2; top-k and kernel are later readers
    "top_k": tune.choice([20, 50]),
    "sigma": tune.choice([3.0, 7.0]),
    "memory_every": tune.choice([2, 3, 5]),  # 3.1, "every N frames"
    "last.learning_rate": tune.loguniform(5e-4, 4e-3),
    "last.power": tune.choice([0.0, 0.9]),
    "last.warm_up": tune.choice([0, 20]),
    "last.sampling.crop": tune.choice([80, 96]),
    "last.sampling.gaps": tune.choice([2, 3, 5]),
    "last.loss.hardest": tune.choice([1.0, 0.4]),
    "last.loss.hardest_between": tune.choice([(0.0, 0.5), (0.2, 0.7)]),
}

if __name__ == "__main__":
    console.run(lambda: print(search("stm", SPACE, tyro.cli(SweepOptions))))
