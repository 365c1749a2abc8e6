"""Search EMN's hyperparameters and parts with Ray Tune.

    python tuning/emn.py --trials 6 --data shards/pseudo shards/rendered --validation shards/validation \
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
    "siamese": tune.choice([True, False]),  # 2.2
    "aspp": tune.choice(["none", "decoder"]),  # 2.2, the pyramid decoder
    "aspp_dilations": tune.choice([(1, 2, 4), (1, 3, 6)]),  # its rates, which the paper leaves open
    "reader": tune.choice(["dense", "topk"]),
    "top_k": tune.choice([20, 50]),
    "aggregation": tune.choice(["soft", "winner-take-all"]),  # table 1
    "memory_every": tune.choice([3, 5]),
    "last.learning_rate": tune.loguniform(5e-4, 4e-3),
    "last.power": tune.uniform(0.5, 1.0),  # 3.1, poly 0.9
    "last.warm_up": tune.choice([0, 20]),
    "last.sampling.crop": tune.choice([80, 96]),
    "last.sampling.gaps": tune.choice([2, 3, 5]),
}

if __name__ == "__main__":
    console.run(lambda: print(search("emn", SPACE, tyro.cli(SweepOptions))))
