"""A layer with one part, and a mixture whose experts work in a smaller space: Nemotron-H."""

from .. import ops
from ..ops import Assignment, Experts
from .batch import Batch
from .block import Mixer
from .linear import Linear
from .moe import MLP, MoE
from .norm import Norm
from .router import Router
from .types import Floats, Tally, Weights


class SingleBlock:
    """x + part(norm(x)): a layer that either mixes tokens or feeds forward.

    `x` is float32 [T, H]; `layer` is the model's number of the block.
    """

    __slots__ = ("norm", "part")

    def __init__(self, norm: Norm, part: Mixer | MoE | MLP) -> None:
        self.norm = norm
        self.part = part

    @property
    def moe(self) -> MoE | None:
        """The mixture of experts, if this layer is one."""
        return self.part if isinstance(self.part, MoE) else None

    @property
    def cache_rows(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a token leaves in a `KVCache`."""
        return () if isinstance(self.part, MoE | MLP) else self.part.cache_rows

    @property
    def row_work(self) -> int:
        """Multiply-adds for one token, where the layer feeds forward."""
        return self.part.row_work if isinstance(self.part, MoE | MLP) else 0

    def __call__(self, x: Floats, batch: Batch | None = None, layer: int = 0) -> Floats:
        return x + self.part(self.norm(x), batch, layer)

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        for part in ("norm", "part"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight


class LatentMoE(MoE):
    """A mixture whose experts see `into(x)` [T, L]; `out` brings their sum back to [T, H].

    Router and shared expert see x itself.
    """

    __slots__ = ("_beside", "into", "out")

    def __init__(
        self, router: Router, experts: Experts, shared: Experts | None, into: Linear, out: Linear
    ) -> None:
        if into.rows != experts.hidden or out.cols != experts.hidden:
            raise ValueError(
                f"[LatentMoE] into gives {into.rows}, out takes {out.cols}; the experts' "
                f"{experts.hidden} are required"
            )
        super().__init__(router, experts, shared)
        self.into, self.out = into, out
        self._beside = None if shared is None else MLP(shared)

    def apply(
        self, x: Floats, assignment: Assignment, tally: Tally | None = None, layer: int = 0
    ) -> Floats:
        """Run the experts of a given assignment."""
        latent = ops.moe_ffn(
            self.into(x), assignment, self.experts, compute=self.compute, tally=tally, layer=layer
        )
        y = self.out(latent)
        return y if self._beside is None else y + self._beside(x)

    @property
    def row_work(self) -> int:
        """Multiply-adds for one token."""
        return super().row_work + self.into.rows * self.into.cols + self.out.rows * self.out.cols

    def weights(self) -> Weights:
        """(name, class, weight) of what this part holds."""
        yield from super().weights()
        for part in ("into", "out"):
            for name, kind, weight in getattr(self, part).weights():
                yield f"{part}.{name}", kind, weight
