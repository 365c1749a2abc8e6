"""Search SKN's hyperparameters and parts with Ray Tune.

    python tuning/skn.py --trials 6 --data shards/pseudo shards/rendered --validation shards/validation \
        --stages images bl30k

What keys may be stands in `stm.py`. The ranges suit nano.
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
    "backbone": tune.choice(["test_resnet", "resnet10t"]),  # timm's; masks enter behind a deep stem
    "reader": tune.choice(["spatial", "kernel"]),  # 2.2; kernel is KMN's
    "sigma": tune.choice([3.0, 5.0, 7.0]),  # equation 9
    "argmax_on": tune.choice(["affinity", "weights"]),  # equations 7 and 8
    "renormalise": tune.choice([True, False]),  # equations 10 and 11
    "aspp": tune.choice(["none", "read"]),
    "aspp_dilations": tune.choice([(1, 2, 4), (1, 2, 4, 8)]),
    "memory_every": tune.choice([3, 5]),
    "last.learning_rate": tune.loguniform(5e-4, 4e-3),
    "last.power": tune.uniform(0.5, 1.0),
    "last.warm_up": tune.choice([0, 20]),
    "last.sampling.crop": tune.choice([80, 96]),
    "last.sampling.gaps": tune.choice([2, 3, 5]),
    "last.corruption.swap": tune.choice([0.0, 0.3]),  # 3, spoilt estimates
    "last.corruption.morph": tune.choice([0.0, 0.5]),
}

if __name__ == "__main__":
    console.run(lambda: print(search("skn", SPACE, tyro.cli(SweepOptions))))
