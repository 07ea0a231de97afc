"""The command line: parsing, progress and the rendering of results and errors; nothing is computed here.

Results go to stdout (a table, or one JSON object), progress and logs to stderr. Exit codes: 0 fine, 1 the run failed,
2 bad input. Heavy imports wait until a command runs, so `--help` and a misspelt key answer at once. One module a verb;
they appear in `--help` in the order in which they are imported here.
"""

from __future__ import annotations

import logging
import os
import sys

from marginkit.cli.app import app
from marginkit.cli.rendering import fail
from marginkit.errors import BadInput, MarginkitError
from marginkit.progress import is_first

# isort: off
from marginkit.cli import checking as checking
from marginkit.cli import grading as grading
from marginkit.cli import selecting as selecting
from marginkit.cli import training as training
from marginkit.cli import sampling as sampling
from marginkit.cli import judging as judging
from marginkit.cli import evaluating as evaluating
from marginkit.cli import benchmarks as benchmarks
from marginkit.cli import benchmark_files as benchmark_files
from marginkit.cli import best_of_n as best_of_n
from marginkit.cli import reporting as reporting
from marginkit.cli import demonstration as demonstration
from marginkit.cli import catalogue as catalogue
# isort: on


def _quiet_libraries() -> None:
    """Our own lines to stderr; no bars, banners or deprecation notes of libraries between them."""
    import warnings

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("marginkit")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if is_first() else logging.ERROR)
    logger.propagate = False
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def main() -> None:
    """Run the command line; errors are one line on stderr."""
    _quiet_libraries()
    try:
        app(standalone_mode=True)
    except BadInput as error:
        fail(error, 2)
    except MarginkitError as error:
        fail(error, 1)
    except KeyboardInterrupt:
        fail("interrupted; the same command with the same out= goes on where it was", 130)
    except OSError as error:
        fail(error, 1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        fail(
            "out of memory; lower train.tokens_per_micro_batch, or add train.gradient_checkpointing=true or model.lora",
            1,
        )
