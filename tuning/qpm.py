"""Search QPM's hyperparameters and parts with Ray Tune.

    python tuning/qpm.py --trials 6 --data shards/pseudo shards/rendered --validation shards/validation \
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
    "quality": tune.choice(["own", "shared"]),  # 2.2
    "prior": tune.choice(["none", "union", "object"]),  # 2.3, equation 4
    "prior_threshold": tune.choice([0.5, 0.65, 0.8]),  # 2.3, 0.65
    "memory_threshold": tune.choice([0.5, 0.7, 0.9]),  # 2.2, 0.7
    "reader": tune.choice(["dense", "topk"]),
    "top_k": tune.choice([20, 50]),  # MiVOS, on which QPM builds
    "memory_every": tune.choice([3, 5]),
    "last.learning_rate": tune.loguniform(5e-4, 4e-3),
    "last.loss.kind": tune.choice(["bce", "cross-entropy"]),
    "last.loss.quality": tune.loguniform(0.3, 3.0),
    "last.power": tune.uniform(0.5, 1.0),
    "last.warm_up": tune.choice([0, 20]),
    "last.sampling.crop": tune.choice([80, 96]),
    "last.sampling.gaps": tune.choice([2, 3, 5]),
}

if __name__ == "__main__":
    console.run(lambda: print(search("qpm", SPACE, tyro.cli(SweepOptions))))
