"""A family's mixture of experts: what it is made of, and reading it layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import Config
from ..nn import MoE
from .base import top_k
from .expert_layouts import PARTS, Layout
from .reader import Reader


@dataclass(frozen=True, slots=True)
class Mixture:
    """Reads a router `gate`, `experts` and perhaps a shared expert.

    `rule` are keywords of `ops.route`; `select_bias` is the name of the bias that enters the
    selection alone, [*bias_shape, E]; `router_bias`: the gate has a bias of its own. `parts` and
    `layout` say how experts lie in the file. `shared` is the inner size of the shared expert (0:
    none), named `shared_name`, with `shared_bias` or without, fused where it has a
    `shared_layout`. `options` are those of `ops.Experts`, for all experts.
    """

    hidden: int
    experts: int
    k: int
    inner: int
    rule: Mapping[str, Any]
    gate: str = "gate"
    select_bias: str = ""
    bias_shape: tuple[int, ...] = ()
    router_bias: bool = False
    experts_name: str = "experts"
    parts: Sequence[str] = PARTS
    layout: Layout = field(default_factory=Layout)
    shared: int = 0
    shared_name: str = "shared_experts"
    shared_layout: Layout | None = None
    shared_bias: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, inner: str, rule: Mapping[str, Any], **fields: Any) -> "Mixture":
        """Sizes from config.json, whose field `inner` is the inner size of an expert."""
        count = config.size("num_experts", "num_local_experts", "n_routed_experts")
        k = top_k(config, count)
        return cls(config.size("hidden_size"), count, k, config.size(inner), rule, **fields)

    def read(self, layer: Reader, **more: Any) -> MoE:
        """The mixture of one layer; `more` goes to `nn.MoE`."""
        bias = None
        if self.select_bias:
            bias = layer.tensor(self.select_bias, *self.bias_shape, self.experts).reshape(-1)
        router = layer.router(
            self.gate,
            self.experts,
            self.hidden,
            self.k,
            bias=self.router_bias,
            select_bias=bias,
            **self.rule,
        )
        banks = layer.experts(
            self.experts_name,
            self.experts,
            self.inner,
            self.hidden,
            self.parts,
            layout=self.layout,
            **self.options,
        )
        beside = None
        if self.shared:
            beside = layer.gated_mlp(
                self.shared_name,
                self.shared,
                self.hidden,
                kind="shared",
                layout=self.shared_layout,
                bias=self.shared_bias,
                **self.options,
            )
        return MoE(router, banks, beside, **more)


def group_rule(
    config: Config, experts: int, k: int, groups: tuple[int, int] | None = None
) -> dict[str, int]:
    """`groups` and `top_groups` of `ops.route`: n_group and topk_group unless given."""
    if groups is None:
        groups = config.size("n_group", default=1), config.size("topk_group", default=1)
    count, kept = groups
    config.require(experts % count == 0, "n_group", f"a divisor of the {experts} experts")
    config.require(kept <= count, "topk_group", f"at most n_group, {count},")
    reachable = kept * (experts // count)
    config.require(
        k <= reachable,
        "num_experts_per_tok",
        f"at most the {reachable} experts of topk_group groups",
    )
    if kept == count:  # no group is left out
        return {"groups": 1, "top_groups": 1}
    return {"groups": count, "top_groups": kept}
