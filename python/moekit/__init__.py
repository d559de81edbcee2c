"""moekit: mixture-of-experts kernels for CPUs, and whole models you can open while they run.

    import moekit as mk

    model = mk.load("path/to/model", format="int8")     # or mk.demo_model()
    print(model.generate("Once upon a time"))
    with model.record() as r:                           # which experts did the work
        model.forward([1, 2, 3])

`mk.ops` are the kernels, `mk.nn` the parts of a model. Names load when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import FileError

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import analysis as analysis
    from . import balance as balance
    from . import checkpoint as checkpoint
    from . import edit as edit
    from . import nn as nn
    from . import ops as ops
    from .analysis.quant_error import quant_report as quant_report
    from .demo import demo_path as demo_path
    from .edit import assemble as assemble
    from .loading import demo_model as demo_model
    from .loading import load as load
    from .ops import Assignment as Assignment
    from .ops import show_config as show_config
    from .planner import ModelPlan as ModelPlan
    from .planner import plan_model as plan_model
    from .quantization import Recipe as Recipe
    from .quantization import quantize as quantize
    from .record import Record as Record

# name -> the module that has it ("" for the module of that name itself). Importing moekit stays
# quick this way: neither numpy nor the kernels are touched before they are needed.
_EXPORTS = {
    "Assignment": "ops",
    "ModelPlan": "planner",
    "Recipe": "quantization",
    "Record": "record",
    "analysis": "",
    "assemble": "edit",
    "balance": "",
    "checkpoint": "",
    "demo_model": "loading",
    "demo_path": "demo",
    "edit": "",
    "load": "loading",
    "nn": "",
    "ops": "",
    "plan_model": "planner",
    "quant_report": "analysis.quant_error",
    "quantize": "quantization",
    "show_config": "ops",
}

__all__ = ["FileError", "__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _EXPORTS[name]
    if module:
        value = getattr(import_module(f"{__name__}.{module}"), name)
    else:
        value = import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
