"""What counts as a number where a config or a file gives one."""

import math
from numbers import Integral, Real
from typing import Any


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy. A truth value is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is a finite number of Python or NumPy. A truth value is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) < math.inf
