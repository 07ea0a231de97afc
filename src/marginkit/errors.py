"""The errors a user can meet; each message is one line: the place, the rule, the way out.

MarginkitError
|-- BadInput      data, configuration or arguments are wrong; exit code 2, raised before anything is loaded
|   `-- ShapeError    tensors at a seam of `core` do not fit together
`-- RunFailed     the run itself failed (a non-finite loss, a full disk); exit code 1
"""

from __future__ import annotations


class MarginkitError(Exception):
    """Anything marginkit refuses or cannot finish."""


class BadInput(MarginkitError, ValueError):
    """Data, configuration or arguments are wrong."""


class ShapeError(BadInput):
    """Tensors at a seam do not fit together."""


class RunFailed(MarginkitError, RuntimeError):
    """A run that started well could not go on."""
