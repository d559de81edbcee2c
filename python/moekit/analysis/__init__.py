"""Looking at what models and routers do: figures of their own, and the pictures of them."""

from .ablation import Ablation, ablate
from .intent import Intent, Profile, intent, profile
from .load import Load, coactivation, load, margins, oscillation
from .reading import record_texts
from .specialisation import Specialisation, Strength, saturation, specialisation
from .stream import BalancedStream, balance_stream
from .text import ColouredText, coloured_text

__all__ = [
    "Ablation",
    "BalancedStream",
    "ColouredText",
    "Intent",
    "Load",
    "Profile",
    "Specialisation",
    "Strength",
    "ablate",
    "balance_stream",
    "coactivation",
    "coloured_text",
    "intent",
    "load",
    "margins",
    "oscillation",
    "profile",
    "record_texts",
    "saturation",
    "specialisation",
]
