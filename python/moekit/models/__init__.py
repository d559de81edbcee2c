"""Model families, one file each, found by config.json's model_type."""

from importlib import import_module

from ..config import Config
from ..nn import Model
from .reader import Reader

# model_type -> the module that builds it. A family is added by a row here and its file.
FAMILIES = {
    "afmoe": "afmoe",
    "axk1": "axk1",
    "bailing_hybrid": "bailing_hybrid",
    "cohere2_moe": "cohere2_moe",
    "dbrx": "dbrx",
    "deepseek": "deepseek",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "deepseek_v32": "deepseek_v32",
    "deepseek_v4": "deepseek_v4",
    "dots1": "dots1",
    "ernie4_5_moe": "ernie4_5_moe",
    "exaone_moe": "exaone_moe",
    "flex_olmo": "flex_olmo",
    "gemma4": "gemma4",
    "gemma4_text": "gemma4",
    "glm4_moe": "glm4_moe",
    "glm4_moe_lite": "glm4_moe_lite",
    "glm_moe_dsa": "glm_moe_dsa",
    "gpt_oss": "gpt_oss",
    "granitemoe": "granitemoe",
    "granitemoe_swa": "granitemoe_swa",
    "granitemoehybrid": "granitemoehybrid",
    "granitemoeshared": "granitemoe",
    "hunyuan_v1_moe": "hunyuan_v1_moe",
    "hy_v3": "hy_v3",
    "jamba": "jamba",
    "jetmoe": "jetmoe",
    "kimi_k2": "deepseek_v3",
    "kimi_linear": "kimi_linear",
    "laguna": "laguna",
    "lfm2_moe": "lfm2_moe",
    "llama4": "llama4",
    "llama4_text": "llama4",
    "longcat_flash": "longcat_flash",
    "mellum": "mellum",
    "mimo_v2_flash": "mimo_v2_flash",
    "minimax": "minimax",
    "minimax_m2": "minimax_m2",
    "minimax_m3_vl_text": "minimax_m3",
    "mistral4": "mistral4",
    "mixtral": "mixtral",
    "nemotron_h": "nemotron_h",
    "olmoe": "olmoe",
    "phimoe": "phimoe",
    "qwen2_moe": "qwen2_moe",
    "qwen3_5_moe": "qwen3_5_moe",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_moe": "qwen3_moe",
    "qwen3_next": "qwen3_next",
    "solar_open": "solar_open",
    "switch_transformers": "switch_transformers",
}


def build(config: Config, reader: Reader) -> Model:
    """The model that `config` describes, from the tensors of `reader`.

    FileError for an unknown model_type, for absurd fields, and for tensors that are missing, have
    another shape, or have no place in the architecture.
    """
    family = config.choice("model_type", sorted(FAMILIES))
    module = import_module(f"{__name__}.{FAMILIES[family]}")
    model = module.build(config, reader)
    assert isinstance(model, Model)
    return model
