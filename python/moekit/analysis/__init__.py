"""Looking at what models and routers do: figures of their own, and the pictures of them."""

from .load import Load, coactivation, load, margins, oscillation

__all__ = ["Load", "coactivation", "load", "margins", "oscillation"]
