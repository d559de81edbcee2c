"""Names of the array types that travel between the parts of a model."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import _core
from ..ops import PackedWeight

Floats: TypeAlias = npt.NDArray[np.float32]
Ids: TypeAlias = npt.NDArray[np.int32]
# How often the experts of each layer were chosen.
Tally: TypeAlias = _core.ExpertTally
# What a part is made of: the name of a weight, the class it is counted in, and the weight itself.
Weight: TypeAlias = tuple[str, str, PackedWeight | npt.NDArray[Any]]
Weights: TypeAlias = Iterator[Weight]
