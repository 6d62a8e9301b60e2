"""What each runtime loads, one rule per row: what it finds in an adapter, the consequence, the remedy, the source file.

Looked up in November 2026 in the sources of the versions named. A rule says what the loader does, not what it could.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from eckart.adapter.outline import AdapterOutline
from eckart.operations.checking import parts

RuntimeName = Literal["peft", "vllm", "sglang", "llama.cpp", "mlx", "diffusers", "comfyui"]
Effect = Literal["refuses", "ignores", "needs"]
Step = Literal["lora", "rank", "format"]
"""What makes an adapter fit: plain low-rank updates, another rank, or writing it in the runtime's format."""

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of max_lora_rank
_VLLM_DEFAULT = 16


@dataclass(frozen=True)
class Rule:
    """One limit of a runtime.

    Attributes:
        effect: the runtime refuses the adapter, loads it without these parts or with other numbers, or needs an option.
        finds: the names of the parts; none if the rule does not apply.
        reason: what the runtime does, as a clause before the names.
        source: file of the runtime's source that says so.
        step: what makes the adapter fit; None if nothing does.
        within: format of the adapter to which the rule is limited.
    """

    effect: Effect
    finds: parts.Finds
    reason: str
    source: str
    step: Step | None = None
    within: str | None = None


@dataclass(frozen=True)
class Runtime:
    """A program or library that loads adapters.

    Attributes:
        title: its name as its authors write it.
        version: the one whose source was read.
        formats: formats that it loads; the first is the one to convert to.
        loads: these formats in words.
        pipelines: whether it loads adapters of diffusion pipelines, rather than of language models; None for both.
        rules: its other limits.
        rank: the rank to resize to where the step of a rule is `rank`.
    """

    title: str
    version: str
    formats: tuple[str, ...]
    loads: str
    pipelines: bool | None
    rules: tuple[Rule, ...]
    rank: Callable[[AdapterOutline], int] = parts.largest_rank


def _vllm_rank(adapter: AdapterOutline) -> int:
    """The default of max_lora_rank, or the highest one for an adapter above it."""
    return _VLLM_DEFAULT if parts.largest_rank(adapter) <= _VLLM_RANKS[-1] else _VLLM_RANKS[-1]


def _vllm_option(adapter: AdapterOutline, config: parts.Config = None) -> list[str]:
    """The option that a rank above the default needs."""
    rank = parts.largest_rank(adapter, config)
    allowed = next((limit for limit in _VLLM_RANKS if rank <= limit), None)
    return [f"max_lora_rank={allowed}"] if allowed and rank > _VLLM_DEFAULT else []


def _above_vllm(adapter: AdapterOutline, config: parts.Config = None) -> list[str]:
    """Layers above the highest rank; the config's `r` if only that is."""
    layers = [name for name, layer in adapter.items() if layer.rank > _VLLM_RANKS[-1]]
    declared = parts.largest_rank(adapter, config)
    return layers or ([f"r = {declared}"] if declared > _VLLM_RANKS[-1] else [])


_PEFT_CONFIG = "peft/tuners/lora/config.py"
_VLLM_CONFIG, _VLLM_MODEL = "vllm/lora/peft_helper.py", "vllm/lora/lora_model.py"
_VLLM_SAVED = "takes no modules_to_save but classifier and score"
_SGLANG_LORA, _SGLANG_POOL = "sglang/srt/lora/lora.py", "sglang/srt/lora/mem_pool.py"
_LLAMA_CONVERTER, _LLAMA_LOADER = "convert_lora_to_gguf.py", "src/llama-adapter.cpp"
_MLX_LOADER = "mlx_lm/tuner/utils.py"
_DIFFUSERS_LOADER = "diffusers/loaders/lora_pipeline.py"
_DIFFUSERS_NAMES = "diffusers/loaders/lora_conversion_utils.py"
_COMFY_LORA, _COMFY_LAYER = "comfy/lora.py", "comfy/weight_adapter/lora.py"

RUNTIMES: Mapping[RuntimeName, Runtime] = {
    "peft": Runtime(
        "PEFT",
        "0.21.2",
        ("peft",),
        "PEFT folders",
        None,
        (Rule("needs", parts.peft_release, "needs a release that knows the fields of its config", _PEFT_CONFIG),),
    ),
    "vllm": Runtime(
        "vLLM",
        "0.33.0",
        ("peft",),
        "PEFT folders",
        False,
        (
            Rule("refuses", parts.dora, "does not support DoRA", _VLLM_CONFIG, "lora"),
            Rule("refuses", parts.biases, "does not support lora_bias", _VLLM_CONFIG),
            Rule("refuses", parts.stated_bias, 'takes no bias but "none"', _VLLM_CONFIG),
            Rule("refuses", parts.saved_beyond_heads, _VLLM_SAVED, _VLLM_CONFIG, "lora"),
            Rule("refuses", parts.vectors_beyond_heads, _VLLM_SAVED, _VLLM_CONFIG),
            Rule("refuses", parts.token_rows, "reads no trainable_token_indices", "vllm/lora/utils.py", "lora"),
            Rule("ignores", parts.base_weights, "skips weights saved in base_layer", "vllm/lora/utils.py", "lora"),
            Rule("refuses", parts.convolutions, "has LoRA for linear layers and embeddings only", _VLLM_MODEL),
            Rule("refuses", _above_vllm, "takes ranks up to 512", "vllm/config/lora.py", "rank"),
            Rule("needs", _vllm_option, "needs an option for ranks above 16", "vllm/config/lora.py", "rank"),
            Rule(
                "needs",
                parts.fused_experts,
                "needs enable_mixed_moe_lora_format, and is_3d_lora_weight in the request, but for gpt-oss, Qwen3.5, "
                "Qwen3-VL and Qwen3-Omni, whose experts stay fused",
                "vllm/lora/model_manager.py",
            ),
        ),
        _vllm_rank,
    ),
    "sglang": Runtime(
        "SGLang",
        "0.5.23",
        ("peft",),
        "PEFT folders",
        False,
        (
            Rule("refuses", parts.dora, "does not support DoRA", "sglang/srt/lora/lora_manager.py", "lora"),
            Rule("refuses", parts.biases, "has no place for lora_bias", _SGLANG_POOL),
            Rule("refuses", parts.base_biases, "has no place for trained biases", _SGLANG_POOL),
            Rule("refuses", parts.unlike_ranks, "takes one rank, the config's r, for all layers", _SGLANG_POOL, "rank"),
            Rule(
                "ignores",
                parts.unlike_scales,
                "scales every layer by lora_alpha / r, whatever alpha_pattern and use_rslora say",
                _SGLANG_LORA,
                "format",
            ),
            Rule("refuses", parts.text_targets, "takes target_modules as a list", "sglang/srt/lora/utils.py", "format"),
            Rule("refuses", parts.vectors_in_layers, "finds no target module for saved tensors", _SGLANG_POOL),
            Rule("ignores", parts.vectors_outside_layers, "leaves out saved tensors", _SGLANG_LORA),
            Rule("refuses", parts.matrices_in_layers, "finds no target module for saved tensors", _SGLANG_POOL, "lora"),
            Rule("ignores", parts.matrices_outside_layers, "leaves out saved tensors", _SGLANG_LORA, "lora"),
            Rule("ignores", parts.base_weights, "leaves out saved tensors", _SGLANG_LORA, "lora"),
            Rule("ignores", parts.token_rows, "leaves out trainable_token_indices", _SGLANG_LORA, "lora"),
            Rule(
                "refuses",
                parts.unpaired,
                "fuses q, k and v, and gate and up, and needs q with v and gate with up",
                _SGLANG_LORA,
            ),
            Rule("refuses", parts.fused_experts, "reads experts one by one, not target_parameters", _SGLANG_POOL),
            Rule("refuses", parts.convolutions, "has LoRA for linear layers and embeddings only", _SGLANG_POOL),
        ),
    ),
    "llama.cpp": Runtime(
        "llama.cpp",
        "llama-cpp-python 0.3.36",
        ("gguf",),
        "GGUF files",
        False,
        (
            Rule("refuses", parts.dora, "has no tensors for DoRA", _LLAMA_LOADER, "lora"),
            Rule("refuses", parts.biases, "has no tensors for lora_bias", _LLAMA_LOADER),
            Rule("refuses", parts.saved_biases, "has no tensors for biases", _LLAMA_LOADER),
            Rule("ignores", parts.norms, "skips the tensors of norms", _LLAMA_LOADER),
            Rule("refuses", parts.matrices, "takes no whole weights", _LLAMA_LOADER, "lora"),
            Rule("refuses", parts.token_rows, "takes no trainable_token_indices", _LLAMA_LOADER, "lora"),
            Rule("ignores", parts.base_weights, "skips weights saved in base_layer", _LLAMA_CONVERTER, "lora"),
            Rule("refuses", parts.convolutions, "has LoRA for matrices only", _LLAMA_LOADER),
            Rule(
                "ignores",
                parts.unlike_scales,
                "its own converter ignores alpha_pattern and use_rslora; eckart's does not",
                _LLAMA_CONVERTER,
                "format",
                within="peft",
            ),
        ),
    ),
    "mlx": Runtime(
        "mlx-lm",
        "0.32.0",
        ("mlx",),
        "folders of mlx-lm",
        False,
        (
            Rule("refuses", parts.biases, "has no parameter for lora_bias", _MLX_LOADER),
            Rule("refuses", parts.base_biases, "takes no tensors but those of LoRA", _MLX_LOADER),
            Rule("refuses", parts.vectors, "takes no tensors but those of LoRA", _MLX_LOADER),
            Rule("refuses", parts.matrices, "takes no tensors but those of LoRA", _MLX_LOADER, "lora"),
            Rule("refuses", parts.base_weights, "takes no tensors but those of LoRA", _MLX_LOADER, "lora"),
            Rule("refuses", parts.token_rows, "takes no tensors but those of LoRA", _MLX_LOADER, "lora"),
            Rule("refuses", parts.convolutions, "has LoRA for linear layers and embeddings only", _MLX_LOADER),
        ),
    ),
    "diffusers": Runtime(
        "diffusers",
        "0.42.1",
        ("diffusers", "kohya", "comfyui"),
        "diffusers files, kohya files and files of ComfyUI's names",
        True,
        (
            Rule("ignores", parts.dora, "drops dora_scale", _DIFFUSERS_LOADER, "format", within="kohya"),
            Rule("ignores", parts.biases_of_flux, "drops diff_b", _DIFFUSERS_NAMES, "format", within="kohya"),
            Rule("refuses", parts.biases_beyond_flux, "cannot name diff_b", _DIFFUSERS_NAMES, "format", within="kohya"),
        ),
    ),
    "comfyui": Runtime(
        "ComfyUI",
        "0.38.1",
        ("kohya", "comfyui", "diffusers"),
        "files of its own names, kohya files and diffusers files",
        True,
        (
            Rule(
                "ignores",
                parts.scales,
                "reads no lora_adapter_metadata, so its scale is 1",
                _COMFY_LAYER,
                "format",
                within="diffusers",
            ),
            Rule("ignores", parts.dora, "reads no lora_magnitude_vector", _COMFY_LORA, within="diffusers"),
            Rule("ignores", parts.biases, "reads no lora_B.bias", _COMFY_LORA, within="diffusers"),
            Rule(
                "ignores",
                parts.unet_projections,
                "knows these only with .processor in their names, or as in kohya's",
                _COMFY_LORA,
                "format",
                within="diffusers",
            ),
            Rule(
                "ignores",
                parts.dora,
                "divides DoRA by the norm of W instead of that of W + ΔW (pull request 15458)",
                "comfy/weight_adapter/base.py",
                within="kohya",
            ),
        ),
    ),
}
