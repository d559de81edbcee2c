"""Quantising mixtures of experts: recipes, calibration, GPTQ, activation-aware scaling, budgets.

    model = mk.quantize("path", "int4", out="path-int4")
    model = mk.quantize(model, {"default": "int4", "down": "int8"}, texts, method="gptq")
    model.quantization.by_role(), .fallbacks, .tokens

The formats themselves are in `csrc/moe/quant`; what a quantisation did to the routing is told by
`mk.quant_report`.
"""

from .notes import Matrix, Notes
from .recipe import Recipe, bits_of, places_of
from .rounding import Options
from .run import quantize

__all__ = ["Matrix", "Notes", "Options", "Recipe", "bits_of", "places_of", "quantize"]
