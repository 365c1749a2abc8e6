"""How good masks are: J, F, the protocols that count them, and reports."""

from vosforge.evaluation.metrics import boundary_f, jaccard
from vosforge.evaluation.protocols import score
from vosforge.evaluation.report import summarise

__all__ = ["boundary_f", "jaccard", "score", "summarise"]
