"""The gate before `@champion`: a version may replace the champion only where it is shown to be no worse."""

from __future__ import annotations

import json
from dataclasses import dataclass

from vosforge.errors import UserError
from vosforge.evaluation.paired import Difference, paired_difference
from vosforge.registry.evaluations import Evaluation

FEWEST_VIDEOS = 5
MARGIN = 0.005
"""By how much J&F may be worse at most, by the lower end of the 95 % interval."""


@dataclass(frozen=True)
class Decision:
    """Whether a version becomes champion, and why.

    Attributes:
        allowed: it does.
        reason: in words.
        champion: version that it was compared with; None where there is none.
        on: set on which.
        difference: of J&F, challenger minus champion; None where they were not compared.
        forced: why the gate was passed over; None where it was not.
    """

    allowed: bool
    reason: str
    champion: str | None = None
    on: str | None = None
    difference: Difference | None = None
    forced: str | None = None

    def as_json(self) -> str:
        """For a tag of the version."""
        told = {"reason": self.reason, "champion": self.champion, "set": self.on, "forced": self.forced}
        difference = self.difference._asdict() if self.difference else None
        return json.dumps({"allowed": self.allowed, **told, "difference": difference})


def decide(
    champion: str | None, ours: Evaluation | None, theirs: Evaluation | None, force: str | None = None
) -> Decision:
    """Judge a challenger.

    The first champion of a name needs no comparison. Every later one needs, on the same videos as the champion, a mean
    difference of J&F of at least 0 whose 95 % interval (paired bootstrap over videos) stays above -0.005, over at least
    5 videos.

    Args:
        champion: its version; None where there is none.
        ours, theirs: evaluations of the challenger and of the champion on one set; None where there is none.
        force: why the challenger becomes champion whatever is measured; what was measured is told all the same.

    Raises:
        UserError: when the two cannot be compared, unless it is forced.
    """
    if champion is None:
        return Decision(True, "the first champion", forced=force)
    try:
        difference = compare(ours, theirs, champion)
    except UserError as error:
        if force is None:
            raise
        return Decision(True, str(error), champion, ours.on if ours else None, forced=force)
    objection = judge(difference)
    told = f"{describe(difference)} against version {champion} on {ours.on}{': ' if objection else ''}{objection}"
    if trusted := _without_digest(ours, theirs, champion):
        told += f" (reports give no digest of {', '.join(trusted)})"
    return Decision(not objection or force is not None, told, champion, ours.on, difference, force)


def judge(difference: Difference) -> str:
    """What speaks against a challenger of this difference to the champion; empty where nothing does."""
    if difference.videos < FEWEST_VIDEOS:
        return f"fewer than {FEWEST_VIDEOS} videos say nothing"
    if difference.mean < 0:
        return "worse on average"
    if difference.low <= -MARGIN:
        return f"the interval reaches {-MARGIN} or below, so it may be worse"
    return ""


def describe(difference: Difference) -> str:
    """A difference in words."""
    return (
        f"J&F {difference.mean:+.4f}, 95 % interval {difference.low:+.4f} to {difference.high:+.4f} over "
        f"{difference.videos} videos"
    )


def compare(ours: Evaluation | None, theirs: Evaluation | None, champion: str) -> Difference:
    """The challenger's J&F minus the champion's, by the paired bootstrap over videos.

    Raises:
        UserError: when one has no evaluation, or the two are not of the same videos under the same conditions.
    """
    if ours is None:
        raise UserError(
            "--report: a new champion needs a report of jobs/evaluate.py --json that tells which method it is"
        )
    if theirs is None:
        raise UserError(
            f"champion version {champion} has no evaluation on {ours.on}; evaluate it there with jobs/evaluate.py, and "
            "give that report to jobs/register.py --model models:/NAME@champion --name NAME --report FILE"
        )
    for field in ("protocol", "how", "truth"):
        found, wanted = getattr(ours, field), getattr(theirs, field)
        if found != wanted and not (field == "truth" and None in (found, wanted)):
            told = _differing(wanted, found) if field == "how" else f"{wanted} there, {found} here"
            raise UserError(
                f"{ours.on}: version {champion} was evaluated under another {_CALLED[field]} ({told}); "
                "evaluate both alike"
            )
    _check_videos(ours, theirs, champion)
    return paired_difference(ours.scores, theirs.scores)


def _without_digest(ours: Evaluation, theirs: Evaluation, champion: str) -> list[str]:
    """What nothing shows to be what it is called."""
    digests = {
        "the new version": ours.model,
        f"version {champion}": theirs.model,
        f"the videos of {ours.on}": ours.truth and theirs.truth,
    }
    return [called for called, digest in digests.items() if not digest]


_CALLED = {"protocol": "--protocol", "how": "setting", "truth": "content of its shards"}


def _differing(wanted: dict, found: dict) -> str:
    names = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    return ", ".join(f"{name} {wanted.get(name)} there, {found.get(name)} here" for name in names)


def _check_videos(ours: Evaluation, theirs: Evaluation, champion: str) -> None:
    """Refuse evaluations of which one has videos or objects that the other lacks."""
    for here, there, who in ((ours, theirs, f"version {champion}"), (theirs, ours, "the new version")):
        missing = [video for video in here.scores if video not in there.scores]
        if missing:
            raise UserError(
                f"{ours.on}: {who} was not evaluated on {len(missing)} of {len(here.scores)} videos, the first "
                f"{missing[0]}; evaluate both on the same ones"
            )
    for video, objects in ours.scores.items():
        if objects.keys() != theirs.scores[video].keys():
            raise UserError(
                f"{ours.on}: video {video} has objects {sorted(objects)} here, {sorted(theirs.scores[video])} in "
                f"version {champion}'s evaluation; evaluate both against the same truth"
            )
