"""marginkit: train policies and reward models on graded feedback, and measure whether their confidence is right.

The public names are resolved on first use, so that `import marginkit` costs nothing and `marginkit --help`
needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Group": "records",
    "Groups": "groups",
    "Response": "records",
    "Turn": "records",
    "Pair": "records",
    "Rating": "records",
    "Comparison": "records",
    "Estimate": "records",
    "Scores": "tables",
    "write_groups": "groups",
    "read_groups": "data.sources",
    "make_pairs": "data.pairing",
    "select": "data.selection",
    "Signals": "data.signals",
    "collect_signals": "signals",
    "grade": "grading",
    "judge": "judges.judging",
    "recipe": "assembly",
    "compose": "assembly",
    "PairScores": "core.tensors",
    "SequenceScores": "core.tensors",
    "train": "run",
    "score": "run",
    "sample": "generate",
    "evaluate": "evaluation.metrics",
    "report": "reporting.reports",
    "BadInput": "errors",
    "RunFailed": "errors",
}
__all__ = sorted([*_WHERE, "__version__"])

if TYPE_CHECKING:
    from marginkit.assembly import compose as compose
    from marginkit.assembly import recipe as recipe
    from marginkit.core.tensors import PairScores as PairScores
    from marginkit.core.tensors import SequenceScores as SequenceScores
    from marginkit.data.pairing import make_pairs as make_pairs
    from marginkit.data.selection import select as select
    from marginkit.data.signals import Signals as Signals
    from marginkit.data.sources import read_groups as read_groups
    from marginkit.errors import BadInput as BadInput
    from marginkit.errors import RunFailed as RunFailed
    from marginkit.evaluation.metrics import evaluate as evaluate
    from marginkit.generate import sample as sample
    from marginkit.grading import grade as grade
    from marginkit.groups import Groups as Groups
    from marginkit.groups import write_groups as write_groups
    from marginkit.judges.judging import judge as judge
    from marginkit.records import Comparison as Comparison
    from marginkit.records import Estimate as Estimate
    from marginkit.records import Group as Group
    from marginkit.records import Pair as Pair
    from marginkit.records import Rating as Rating
    from marginkit.records import Response as Response
    from marginkit.records import Turn as Turn
    from marginkit.reporting.reports import report as report
    from marginkit.run import score as score
    from marginkit.run import train as train
    from marginkit.signals import collect_signals as collect_signals
    from marginkit.tables import Scores as Scores


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'marginkit' has no attribute {name!r}")
    return getattr(import_module(f"marginkit.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
