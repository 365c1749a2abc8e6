"""The papers' ablation tables as data: each row's networks, how they are tested, and the paper's figures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vosforge.errors import UserError
from vosforge.settings import Settings

Merging = Literal["average", "stacking"]
# The papers keep all that they remember.
_ALL = Settings(budget="unlimited")
_VIEWS = replace(_ALL, flip=True, scales=(0.75, 1.0, 1.25))


@dataclass(frozen=True)
class Trained:
    """A network as it is trained; what a row leaves open is its paper's preset.

    Attributes:
        network: as in `vosforge.networks.build`.
        parts: chosen anew.
        rate: factor on every stage's learning rate.
        adversarial: whether estimated masks are spoilt in the last stage (SKN, section 3); never elsewhere.
    """

    network: str
    parts: dict[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    adversarial: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        cells: what it says under the table's headings.
        paper: the paper's figures, one for each of the table's sets, in [0, 1].
        members: networks; several are merged.
        test_parts: parts without weights that are chosen at test alone, such as how objects are aggregated.
        settings: how the members run on videos.
        merging: how several members become one.
        against: number of the row that it is compared with, counted from 0; None for the first.
    """

    cells: tuple[str, ...]
    paper: tuple[float, ...]
    members: tuple[Trained, ...]
    test_parts: dict[str, Any] = field(default_factory=dict)
    settings: Settings = _ALL
    merging: Merging = "average"
    against: int | None = None


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        source: paper and number.
        headings: of the rows' cells.
        sets: on which the paper measured.
        stages: of the curriculum, as the paper trains.
        rows: in the paper's order.
        note: how the paper is read where it leaves something open.
    """

    source: str
    headings: tuple[str, ...]
    sets: tuple[str, ...]
    stages: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


_YOUTUBE = "YouTube-VOS 2019 val"

_STM = Trained("stm")
_STM_TABLES = (
    Table(
        "STM (unified, 2019) 3.1",
        ("memory",),
        (),
        ("images", "videos"),
        (
            Row(("first",), (), (_STM,), {"memory_policy": "given"}),
            Row(("previous",), (), (_STM,), {"memory_policy": "latest"}, against=0),
            Row(("first and previous",), (), (_STM,), {"memory_policy": "ends"}, against=0),
            Row(("... and every 10th",), (), (_STM,), {}, replace(_ALL, memory_every=10), against=2),
            Row(("... and every 5th",), (), (_STM,), {}, replace(_ALL, memory_every=5), against=2),
            Row(("... and every 2nd",), (), (_STM,), {}, replace(_ALL, memory_every=2), against=2),
            Row(("all",), (), (_STM,), {}, replace(_ALL, memory_every=1), against=2),
        ),
        "The paper gives the rule, without a table: there are no figures of its own beside these.",
    ),
)

_EMN_PLAIN = Trained("emn", {"siamese": False, "aspp": "none"})
_EMN_SIAMESE = Trained("emn", {"aspp": "none"})
_EMN = Trained("emn")
_EMN_TABLES = (
    Table(
        "EMN (2019) table 1, multiple objects fusion",
        ("method",),
        (_YOUTUBE,),
        ("images", "videos"),
        (
            Row(("-",), (0.763,), (_EMN_PLAIN,), {"aggregation": "none"}),
            Row(("winner-take-all",), (0.768,), (_EMN_PLAIN,), {"aggregation": "winner-take-all"}, against=0),
            Row(("softmax aggregation",), (0.783,), (_EMN_PLAIN,), against=0),
        ),
    ),
    Table(
        "EMN (2019) table 2, proposed modules",
        ("siamese query encoder", "ASPP", "ensemble"),
        (_YOUTUBE,),
        ("images", "videos"),
        (
            Row(("", "", ""), (0.783,), (_EMN_PLAIN,)),
            Row(("x", "", ""), (0.791,), (_EMN_SIAMESE,), against=0),
            Row(("x", "x", ""), (0.802,), (_EMN,), against=1),
            Row(
                ("x", "x", "x"),
                (0.820,),
                (_EMN, replace(_EMN, rate=0.5), replace(_EMN, parts={"correlation": "full"})),
                against=2,
            ),
        ),
        "3.3 averages three models of different hyperparameters and names none; here the other two have half the "
        "learning rate and the full correlation.",
    ),
)

_QPM_PLAIN = Trained("qpm", {"quality": "none", "prior": "none"})
_QPM_ASSESSED = Trained("qpm", {"prior": "none"})
_QPM = Trained("qpm")
_QPM_TABLES = (
    Table(
        "QPM (2021) table 2",
        ("assessment branch", "enhancement branch", "ensemble"),
        (_YOUTUBE,),
        ("images", "bl30k", "videos"),
        (
            Row(("", "", ""), (0.824,), (_QPM_PLAIN,)),
            Row(("x", "", ""), (0.836,), (_QPM_ASSESSED,), against=0),
            Row(("x", "x", ""), (0.840,), (_QPM,), against=1),
            Row(
                ("x", "x", "x"),
                (0.852,),
                (_QPM, replace(_QPM, rate=0.5), replace(_QPM, parts={"reader": "topk"})),
                against=2,
            ),
        ),
        "The ensemble's members are not named; here the other two have half the learning rate and MiVOS's top-k read.",
    ),
)

_SKN_BASE = Trained("skn", {"aspp": "none", "reader": "dense"})
_SKN_ASPP = Trained("skn", {"reader": "dense"})
_SKN = Trained("skn", adversarial=True)
_SKN_TABLES = (
    Table(
        "SKN (2021) table 1",
        ("method",),
        ("DAVIS 2017 test-dev", "YouTube-VOS val"),
        ("images", "bl30k", "videos"),
        (
            Row(("Baseline",), (0.727, 0.802), (_SKN_BASE,)),
            Row(("+ASPP",), (0.734, 0.811), (_SKN_ASPP,), against=0),
            Row(("+Adversarial training",), (0.758, 0.820), (replace(_SKN_ASPP, adversarial=True),), against=1),
            Row(("+Spatial Kernel",), (0.769, 0.827), (_SKN,), against=2),
            Row(("+Flip and Multi-scale",), (0.778, 0.837), (_SKN,), settings=_VIEWS, against=3),
        ),
        "Each row adds to the one above. Masks are spoilt in the last stage alone (4.1); scales are 0.75, 1 and 1.25.",
    ),
)

_CFBI = {"memory_encoder": "none", "memory_policy": "ends", "object_context": False}
_CAMN_BASE = Trained("camn", {**_CFBI, "pyramid": "none"})
_CAMN = Trained("camn")
_CAMN_TABLES = (
    Table(
        "CAMN (2021) table 2",
        ("baseline and components",),
        (_YOUTUBE,),
        ("videos",),
        (
            Row(("Baseline (CFBI)",), (0.813,), (_CAMN_BASE,)),
            Row(("+FPN",), (0.816,), (Trained("camn", {**_CFBI, "pyramid": "fpn"}),), against=0),
            Row(("+PAN",), (0.820,), (Trained("camn", {**_CFBI, "pyramid": "pan"}),), against=0),
            Row(
                ("+OCNet",),
                (0.821,),
                (Trained("camn", {**_CFBI, "object_context": True, "pyramid": "none"}),),
                against=0,
            ),
            Row(("+Flip and multi-scale",), (0.829,), (_CAMN_BASE,), settings=_VIEWS, against=0),
            Row(("+Post-processing",), (0.815,), (_CAMN_BASE,), settings=replace(_ALL, refine=True), against=0),
            Row(("STM + ensemble modeling",), (0.836,), (_CAMN, _STM), settings=_VIEWS, merging="stacking", against=0),
            Row(
                ("Final",),
                (0.837,),
                (_CAMN, _STM),
                settings=replace(_VIEWS, refine=True),
                merging="stacking",
                against=0,
            ),
        ),
        "Each of the first six rows is the baseline with one component, as their figures say; the last two have all "
        "components, merged with STM by the stacking network (2.3).",
    ),
)

TABLES: dict[str, tuple[Table, ...]] = {
    "stm": _STM_TABLES,
    "emn": _EMN_TABLES,
    "qpm": _QPM_TABLES,
    "skn": _SKN_TABLES,
    "camn": _CAMN_TABLES,
}


def tables(network: str) -> tuple[Table, ...]:
    """The ablation tables of a network's paper.

    Raises:
        UserError: for a network without one, listing those that have.
    """
    if network not in TABLES:
        valid = ", ".join(TABLES)
        raise UserError(f"--network: expected one of {valid}, whose papers have ablations, found {network!r}")
    return TABLES[network]
