"""The experts of a layer: three packed weights and an activation."""

from ..ops import Experts

__all__ = ["Experts"]
