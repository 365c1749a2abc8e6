"""Search CAMN's hyperparameters and parts with Ray Tune.

    python tuning/camn.py --trials 6 --data shards/pseudo shards/rendered --validation shards/validation \
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
    "backbone": tune.choice(["test_resnet", "test_efficientnet"]),  # timm's, of nano's size
    "memory_encoder": tune.choice(["product", "prior"]),  # 2.1, figure 2
    "memory_keys": tune.choice(["shared", "separate"]),  # 2.1
    "object_context": tune.choice([True, False]),  # 2.2
    "pyramid": tune.choice(["none", "fpn", "pan"]),  # 2.2
    "reader": tune.choice(["dense", "topk"]),
    "top_k": tune.choice([20, 50]),
    "memory_every": tune.choice([3, 5]),
    "last.learning_rate": tune.loguniform(5e-4, 4e-3),
    "last.power": tune.uniform(0.5, 1.0),
    "last.loss.hardest": tune.choice([1.0, 0.4, 0.15]),  # the hardest 15 %
    "last.loss.hardest_between": tune.choice([(0.0, 0.5), (0.2, 0.7)]),
    "last.warm_up": tune.choice([0, 20]),
    "last.sampling.crop": tune.choice([80, 96]),
    "last.sampling.gaps": tune.choice([2, 3, 5]),
}

if __name__ == "__main__":
    console.run(lambda: print(search("camn", SPACE, tyro.cli(SweepOptions))))
