"""LoRA configurations of PEFT by the base that they adapt: the table of the sweep.

`refused` is what the refusal says where no tool can merge, and `given` is `module` where the base is a live module
rather than its file. Two kinds are left out because PEFT's live model is not what it merges: trained tokens of an
output layer that has a bias, which it drops, and those of BART's classifier, whose layers do not use them.
"""

GROUPS = r"convolution has \d groups"

CUSTOM = {
    "mlp": {
        "one layer by text": {"target_modules": "first"},
        "one layer": {"target_modules": ["first"]},
        "the other layer": {"target_modules": ["second"]},
        "both": {"target_modules": ["first", "second"]},
        "a regex": {"target_modules": r"(fir|seco)\w+"},
        "saved": {"target_modules": ["first"], "modules_to_save": ["second"]},
        "alpha and dropout": {"target_modules": ["first"], "lora_alpha": 5, "lora_dropout": 0.1},
        "rank above the size": {"target_modules": ["first", "second"], "r": 16},
        "rank one": {"target_modules": ["first", "second"], "r": 1, "lora_alpha": 32},
        "DoRA": {"target_modules": ["first"], "use_dora": True},
        "DoRA on both": {"target_modules": ["first", "second"], "use_dora": True, "lora_alpha": 32},
        "DoRA and rsLoRA": {"target_modules": ["first", "second"], "use_dora": True, "use_rslora": True},
        "DoRA and saved": {"target_modules": ["first"], "use_dora": True, "modules_to_save": ["second"]},
        "rsLoRA": {"target_modules": ["first", "second"], "use_rslora": True},
        "negative alpha": {"target_modules": ["first"], "lora_alpha": -3},
        "alpha of zero": {"target_modules": ["first"], "lora_alpha": 0},
        "all biases": {"target_modules": ["first"], "bias": "all"},
        "adapted biases": {"target_modules": ["first"], "bias": "lora_only"},
        "biases with DoRA": {"target_modules": ["first", "second"], "bias": "all", "use_dora": True},
        "LoRA bias": {"target_modules": ["first", "second"], "lora_bias": True, "lora_alpha": 32},
        "LoRA bias with rsLoRA": {"target_modules": ["first"], "lora_bias": True, "use_rslora": True},
        "LoRA bias and all biases": {"target_modules": ["first"], "lora_bias": True, "bias": "all"},
        "ranks": {"target_modules": ["first", "second"], "rank_pattern": {"first": 2}},
        "alphas": {"target_modules": ["first", "second"], "alpha_pattern": {"second": 7}},
        "ranks and alphas": {
            "target_modules": ["first", "second"], "rank_pattern": {"^first": 2}, "alpha_pattern": {"se.*": 7},
        },
        "ranks, alphas and rsLoRA": {
            "target_modules": ["first", "second"], "rank_pattern": {"second": 5}, "alpha_pattern": {"first": 3},
            "use_rslora": True,
        },
        "excluded": {"target_modules": ["first", "second"], "exclude_modules": ["second"]},
        "a parameter": {"target_modules": [], "target_parameters": ["first.weight"]},
        "a module and a parameter": {"target_modules": ["first"], "target_parameters": ["second.weight"]},
        "parameters of different ranks": {
            "target_parameters": ["first.weight", "second.weight"], "target_modules": [],
            "rank_pattern": {"first.weight": 2},
        },
        "orthogonal": {"target_modules": ["first"], "init_lora_weights": "orthogonal"},
        "gaussian": {"target_modules": ["first"], "init_lora_weights": "gaussian"},
        "MiCA": {"target_modules": ["first"], "init_lora_weights": "mica"},
        "PiSSA": {"target_modules": ["first"], "init_lora_weights": "pissa", "refused": "as PEFT changes it"},
        "PiSSA by iterations": {
            "target_modules": ["first"], "init_lora_weights": "pissa_niter_4", "refused": "as PEFT changes it",
        },
        "OLoRA": {"target_modules": ["first"], "init_lora_weights": "olora", "refused": "as PEFT changes it"},
        "VeLoRA": {"target_modules": ["first"], "velora_config": {"num_groups": 2, "init_type": "random"}},
        "KaSA": {"target_modules": ["first"], "kasa_config": {}, "refused": "kasa_config"},
        "MonteCLoRA": {
            "target_modules": ["first"], "monteclora_config": {"num_samples": 2}, "refused": "monteclora_config",
        },
        "block-diagonal A": {
            "target_modules": ["first", "second"], "refused": "use_bdlora",
            "use_bdlora": {"target_modules_bd_a": ["first"], "match_strict": False},
        },
        "a live module": {"target_modules": ["first", "second"], "given": "module"},
    },
    "mlp without bias": {
        "both": {"target_modules": ["first", "second"]},
        "DoRA": {"target_modules": ["first", "second"], "use_dora": True},
        "all biases": {"target_modules": ["first"], "bias": "all"},
        "LoRA bias": {"target_modules": ["first"], "lora_bias": True, "refused": "the base has no first.bias"},
    },
    "normalized": {
        "norm saved": {"target_modules": ["first"], "modules_to_save": ["before"]},
        "batch norm saved": {"target_modules": ["first"], "modules_to_save": ["between", "second"]},
        "all biases": {"target_modules": ["second"], "bias": "all"},
        "biases and norm": {"target_modules": ["second"], "bias": "all", "modules_to_save": ["before"]},
    },
    "recurrent": {
        "both": {"target_modules": ["first", "second"]},
        "GRU saved": {"target_modules": ["first"], "modules_to_save": ["gru"]},
        "GRU saved with DoRA": {"target_modules": ["second"], "modules_to_save": ["gru"], "use_dora": True},
    },
    "deep": {
        "up": {"target_modules": ["up"]},
        "two layers of four": {"target_modules": ["up", "down"], "layers_to_transform": [1, 3]},
        "one layer by pattern": {
            "target_modules": ["down"], "layers_to_transform": 2, "layers_pattern": "layers",
        },
        "layers by regex": {"target_modules": r".*layers\.(0|2)\.\w+"},
        "layers but one": {"target_modules": ["down", "up"], "exclude_modules": r"layers\.3.*"},
        "a rank for each layer": {
            "target_modules": ["up", "down"], "rank_pattern": {"layers.0.up": 1, r"layers\.1\.\w+": 2, "up": 3},
            "alpha_pattern": {r"^layers\.2": 11, "layers.3.down": 2},
        },
        "anchored rank": {"target_modules": ["up"], "rank_pattern": {"^up": 2}},
        "output saved": {"target_modules": ["down"], "modules_to_save": ["up"], "exclude_modules": ["layers.0.down"]},
        "DoRA everywhere": {"target_modules": ["up", "down"], "use_dora": True, "rank_pattern": {"down": 2}},
    },
    "nested": {
        "digits": {"target_modules": ["0.0", "1.0"]},
        "one of a dictionary": {"target_modules": ["heads.a"]},
        "one of a dictionary saved": {"target_modules": ["body.0.0", "heads.a"], "modules_to_save": ["heads.b"]},
    },
    "tokens": {
        "Conv1D": {"target_modules": ["mix"]},
        "Conv1D, declared": {"target_modules": ["mix"], "fan_in_fan_out": True},
        "embedding": {"target_modules": ["emb"]},
        "embedding and Conv1D": {"target_modules": ["emb", "mix"]},
        "all three": {"target_modules": ["emb", "mix", "head"], "rank_pattern": {"emb": 2}, "use_rslora": True},
        "DoRA on Conv1D": {"target_modules": ["mix"], "use_dora": True},
        "DoRA on the embedding": {"target_modules": ["emb"], "use_dora": True},
        "DoRA on both": {"target_modules": ["emb", "mix"], "use_dora": True},
        "some tokens": {"target_modules": ["mix"], "trainable_token_indices": {"emb": [0, 10]}},
        "tokens out of order": {"target_modules": ["head"], "trainable_token_indices": {"emb": [7, 2, 19]}},
        "saved embedding": {"target_modules": ["mix"], "modules_to_save": ["emb"]},
        "LoRA bias on Conv1D": {"target_modules": ["mix"], "lora_bias": True},
        "all biases": {"target_modules": ["mix"], "bias": "all"},
        "MiCA on the embedding": {"target_modules": ["emb"], "init_lora_weights": "mica"},
    },
    "square tokens": {
        "a file": {"target_modules": ["mix"], "refused": "square"},
        "a file, declared": {"target_modules": ["mix"], "fan_in_fan_out": True, "refused": "fan_in_fan_out is true"},
        "a live module": {"target_modules": ["mix"], "given": "module"},
        "a live module, declared": {"target_modules": ["mix"], "fan_in_fan_out": True, "given": "module"},
        "a live module with DoRA": {"target_modules": ["mix", "head"], "use_dora": True, "given": "module"},
        "the head": {"target_modules": ["head"]},
    },
    "tied": {
        "the body": {"target_modules": ["body"]},
        "embedding": {"target_modules": ["emb"], "given": "module"},
        "head": {"target_modules": ["head"], "given": "module"},
        "tokens": {"target_modules": ["body"], "trainable_token_indices": {"emb": [3, 4]}, "given": "module"},
    },
    "twice": {
        "the last": {"target_modules": ["last"]},
        "the shared": {"target_modules": ["first"], "given": "module"},
    },
    "conv1d": {
        "plain": {"target_modules": ["conv"]},
        "DoRA": {"target_modules": ["conv"], "use_dora": True},
        "with the head": {"target_modules": ["conv", "head"], "use_rslora": True},
        "LoRA bias": {"target_modules": ["conv"], "lora_bias": True},
        "saved": {"target_modules": ["head"], "modules_to_save": ["conv"]},
    },
    "conv1d of kernel 1": {
        "plain": {"target_modules": ["conv"]},
        "DoRA": {"target_modules": ["conv"], "use_dora": True},
    },
    "conv1d of one channel": {
        "plain": {"target_modules": ["conv"]},
        "DoRA": {"target_modules": ["conv"], "use_dora": True},
    },
    "conv2d": {
        "plain": {"target_modules": ["conv"]},
        "with the head": {"target_modules": ["conv", "head"]},
        "DoRA": {"target_modules": ["conv"], "use_dora": True},
        "DoRA with the head": {"target_modules": ["conv", "head"], "use_dora": True},
        "LoRA bias": {"target_modules": ["conv"], "lora_bias": True, "lora_alpha": 32},
        "all biases": {"target_modules": ["conv"], "bias": "all"},
        "ranks": {"target_modules": ["conv", "head"], "rank_pattern": {"conv": 2}, "alpha_pattern": {"head": 3}},
        "a parameter next to it": {"target_modules": ["conv"], "target_parameters": ["head.weight"]},
    },
    "conv2d without bias": {
        "plain": {"target_modules": ["conv"]},
        "LoRA bias": {"target_modules": ["conv"], "lora_bias": True, "refused": "the base has no conv.bias"},
    },
    "conv2d of kernel 1": {
        "plain": {"target_modules": ["conv"]},
        "DoRA": {"target_modules": ["conv", "head"], "use_dora": True},
    },
    "conv2d, long": {
        "plain": {"target_modules": ["conv"]},
        "DoRA": {"target_modules": ["conv"], "use_dora": True},
    },
    "conv2d in groups": {
        "plain": {"target_modules": ["conv"], "refused": GROUPS},
        "DoRA": {"target_modules": ["conv"], "use_dora": True, "refused": GROUPS},
        "the head": {"target_modules": ["head"]},
        "saved": {"target_modules": ["head"], "modules_to_save": ["conv"]},
    },
    "depthwise conv2d": {
        "plain": {"target_modules": ["conv"], "refused": GROUPS},
        "saved": {"target_modules": ["head"], "modules_to_save": ["conv"]},
    },
    "conv1d in groups": {"plain": {"target_modules": ["conv"], "refused": GROUPS}},
    "conv3d": {
        "plain": {"target_modules": ["conv"]},
        "with the head": {"target_modules": ["conv", "head"]},
        "DoRA": {"target_modules": ["conv", "head"], "use_dora": True},
        "LoRA bias": {"target_modules": ["conv"], "lora_bias": True, "lora_alpha": 32},
    },
    "attention": {
        "plain": {"target_modules": ["attention"]},
        "with the head": {"target_modules": ["attention", "head"], "use_rslora": True},
        "ranks": {"target_modules": ["attention", "head"], "rank_pattern": {"attention": 2}},
        "saved": {"target_modules": ["head"], "modules_to_save": ["attention"]},
        "all biases": {"target_modules": ["head"], "bias": "all"},
    },
    "attention without bias": {"plain": {"target_modules": ["attention"]}},
    "encoder": {
        "feed-forward": {"target_modules": ["linear1", "linear2"], "use_dora": True},
        "attention": {"target_modules": ["self_attn"]},
        "one layer": {"target_modules": ["linear1"], "layers_to_transform": [1]},
        "norms saved": {"target_modules": ["linear1"], "modules_to_save": ["norm1", "norm2"]},
    },
    "bare": {
        "a matrix": {"target_modules": [], "target_parameters": ["first.weight"]},
        "a matrix of another name": {"target_modules": [], "target_parameters": ["table.rows"]},
        "a mixture's": {"target_modules": [], "target_parameters": ["mixture.up_proj"]},
        "both of a mixture": {"target_modules": [], "target_parameters": ["mixture.up_proj", "mixture.down_proj"]},
        "all": {
            "target_modules": [], "use_rslora": True,
            "target_parameters": ["first.weight", "table.rows", "mixture.up_proj", "mixture.down_proj"],
        },
        "ranks": {
            "target_modules": [], "target_parameters": ["mixture.up_proj", "mixture.down_proj"],
            "rank_pattern": {"mixture.up_proj": 2}, "alpha_pattern": {"mixture.down_proj": 3},
        },
    },
    "bare, square": {
        "a matrix": {"target_modules": [], "target_parameters": ["first.weight"]},
        "a mixture's": {"target_modules": [], "target_parameters": ["mixture.up_proj"]},
    },
    "other names": {
        "one": {"target_modules": [], "target_parameters": ["0.first"]},
        "both": {"target_modules": [], "target_parameters": ["0.first", "0.second"], "refused": "do not distinguish"},
    },
    "square experts": {
        "one": {"target_modules": [], "target_parameters": ["0.up_proj"], "refused": "the experts are square"},
    },
    "routed": {
        "router": {"target_modules": ["router"]},
        "experts": {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
        "one projection": {"target_modules": ["router"], "target_parameters": ["experts.down_proj"]},
        "all": {
            "target_modules": ["router"], "use_rslora": True, "rank_pattern": {"experts.gate_up_proj": 2},
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
        "router as a parameter": {"target_modules": [], "target_parameters": ["router.weight", "experts.down_proj"]},
    },
}  # fmt: skip

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 40, "max_position_embeddings": 32, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32, "n_inner": 24}
GPTJ = GPT2 | {"rotary_dim": 4}
MIXTURE = SIZES | {
    "num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "vocab_size": 40,
    "decoder_start_token_id": 0,
}  # fmt: skip
BERT = SIZES | {"num_key_value_heads": 2, "embedding_size": 16}
CAUSAL, SEQ2SEQ, MASKED = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM"
CLASSIFIER, IMAGES = "AutoModelForSequenceClassification", "AutoModelForImageClassification"
TASKS = {CAUSAL: "CAUSAL_LM", SEQ2SEQ: "SEQ_2_SEQ_LM", CLASSIFIER: "SEQ_CLS"}

# Name: class, model type and sizes of a tiny model of transformers.
MODELS = {
    "OPT": (CAUSAL, "opt", SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "GPT-2": (CAUSAL, "gpt2", GPT2),
    "GPT-J": (CAUSAL, "gptj", GPTJ),
    "Llama": (CAUSAL, "llama", SIZES),
    "Llama, tied": (CAUSAL, "llama", SIZES | {"tie_word_embeddings": True}),
    "Mistral": (CAUSAL, "mistral", SIZES),
    "Qwen2": (CAUSAL, "qwen2", SIZES | {"tie_word_embeddings": True}),
    "Gemma 3": (CAUSAL, "gemma3_text", SIZES),
    "Qwen3": (CAUSAL, "qwen3", SIZES),
    "Qwen3.5": (CAUSAL, "qwen3_5_text", SIZES | {
        "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    }),
    "Gemma": (CAUSAL, "gemma", SIZES),
    "Gemma 2": (CAUSAL, "gemma2", SIZES),
    "Phi": (CAUSAL, "phi", SIZES),
    "Phi-3": (CAUSAL, "phi3", SIZES),
    "GPT-Neo": (CAUSAL, "gpt_neo", SIZES | {
        "attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 2,
    }),
    "GPT-NeoX": (CAUSAL, "gpt_neox", SIZES),
    "GPT-BigCode": (CAUSAL, "gpt_bigcode", GPT2),
    "BLOOM": (CAUSAL, "bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40}),
    "Falcon": (CAUSAL, "falcon", {name: size for name, size in SIZES.items() if name != "head_dim"}),
    "MPT": (CAUSAL, "mpt", {"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 40, "max_seq_len": 32}),
    "CodeGen": (CAUSAL, "codegen", GPTJ | {"n_head": 4}),
    "StableLM": (CAUSAL, "stablelm", SIZES),
    "StarCoder 2": (CAUSAL, "starcoder2", SIZES),
    "OLMo 2": (CAUSAL, "olmo2", SIZES),
    "Cohere": (CAUSAL, "cohere", SIZES),
    "Granite": (CAUSAL, "granite", SIZES),
    "SmolLM 3": (CAUSAL, "smollm3", SIZES),
    "GPT": (CAUSAL, "openai-gpt", GPT2),
    "CTRL": (CAUSAL, "ctrl", GPT2 | {"dff": 24}),
    "Mamba": (CAUSAL, "mamba", SIZES | {"state_size": 4}),
    "RWKV": (CAUSAL, "rwkv", SIZES | {"attention_hidden_size": 16, "context_length": 32}),
    "Mixtral": (CAUSAL, "mixtral", MIXTURE),
    "Qwen2 MoE": (CAUSAL, "qwen2_moe", MIXTURE),
    "Qwen3 MoE": (CAUSAL, "qwen3_moe", MIXTURE),
    "gpt-oss": (CAUSAL, "gpt_oss", MIXTURE),
    "Llama 4": (CAUSAL, "llama4_text", MIXTURE | {"intermediate_size_mlp": 24, "interleave_moe_layer_step": 1}),
    "Granite MoE": (CAUSAL, "granitemoe", MIXTURE),
    "Granite MoE, shared": (CAUSAL, "granitemoeshared", MIXTURE | {"shared_intermediate_size": 12}),
    "Granite 4": (CAUSAL, "granitemoehybrid", MIXTURE | {
        "layer_types": ["attention", "mamba"], "shared_intermediate_size": 12, "mamba_d_state": 4, "mamba_n_heads": 4,
        "mamba_d_head": 8, "mamba_n_groups": 1,
    }),
    "AFMoE": (CAUSAL, "afmoe", MIXTURE | {"num_dense_layers": 1}),
    "PhiMoE": (CAUSAL, "phimoe", MIXTURE),
    "Aria": (CAUSAL, "aria_text", MIXTURE | {"moe_num_experts": 3, "moe_topk": 2}),
    "JetMoE": (CAUSAL, "jetmoe", MIXTURE | {"kv_channels": 8}),
    "Nemotron-H": (CAUSAL, "nemotron_h", MIXTURE | {
        "layers_block_type": ["moe", "attention"], "num_hidden_layers": 2,
        "moe_shared_expert_intermediate_size": 12,
    }),
    "DeepSeek-V3": (CAUSAL, "deepseek_v3", MIXTURE | {
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
        "first_k_dense_replace": 1, "num_key_value_heads": 2, "head_dim": 4,
    }),
    "T5": (SEQ2SEQ, "t5", T5),
    "T5, gated": (SEQ2SEQ, "t5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mT5": (SEQ2SEQ, "mt5", T5),
    "BART": (SEQ2SEQ, "bart", BART),
    "mBART": (SEQ2SEQ, "mbart", BART),
    "M2M-100": (SEQ2SEQ, "m2m_100", BART),
    "Pegasus": (SEQ2SEQ, "pegasus", BART),
    "Marian": (SEQ2SEQ, "marian", BART | {"decoder_vocab_size": 40}),
    "BERT": (MASKED, "bert", BERT),
    "RoBERTa": (MASKED, "roberta", BERT),
    "ELECTRA": (MASKED, "electra", BERT),
    "ALBERT": (MASKED, "albert", BERT),
    "DeBERTa-v2": (MASKED, "deberta-v2", BERT),
    "ModernBERT": (MASKED, "modernbert", BERT),
    "DistilBERT": (MASKED, "distilbert", {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "vocab_size": 40}),
    "BERT classifier": (CLASSIFIER, "bert", BERT),
    "RoBERTa classifier": (CLASSIFIER, "roberta", BERT),
    "DistilBERT classifier": (
        CLASSIFIER, "distilbert", {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "vocab_size": 40},
    ),
    "DeBERTa-v2 classifier": (CLASSIFIER, "deberta-v2", BERT),
    "Llama classifier": (CLASSIFIER, "llama", SIZES),
    "GPT-2 classifier": (CLASSIFIER, "gpt2", GPT2 | {"pad_token_id": 0}),
    "BART classifier": (CLASSIFIER, "bart", BART),
    "ViT": (IMAGES, "vit", SIZES | {"image_size": 16, "patch_size": 8}),
    "ResNet": (IMAGES, "resnet", {
        "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic",
    }),
    "ConvNeXt": (IMAGES, "convnext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}),
}  # fmt: skip
SMALL = {"lora_alpha": 32, "lora_dropout": 0.05}
EVERYWHERE = {"target_modules": "all-linear"}
# What the models that PEFT's own tests load are adapted with.
GENERAL = {
    "defaults": SMALL,
    "all-linear": EVERYWHERE,
    "DoRA": EVERYWHERE | {"use_dora": True},
    "patterns": EVERYWHERE | {
        "use_rslora": True, "rank_pattern": {r".*\.1\..*": 2, "lm_head": 3}, "alpha_pattern": {r".*\.0\..*": 7},
    },
    "all biases": {"bias": "all"},
    "tokens": SMALL | {"trainable_token_indices": [0, 1, 3]},
    "last layer": {"layers_to_transform": [1]},
    "aLoRA": {"alora_invocation_tokens": [1], "refused": "alora_invocation_tokens"},
}  # fmt: skip
NAMES = {
    "OPT": ("embed_tokens", "lm_head"), "GPT-2": ("wte", "lm_head"), "GPT-J": ("wte", "lm_head"),
    "Llama": ("embed_tokens", "lm_head"), "Llama, tied": ("embed_tokens", "lm_head"),
    "Qwen2": ("embed_tokens", "lm_head"), "Gemma 3": ("embed_tokens", "lm_head"),
}  # fmt: skip
EXPERTS = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
# Models for which PEFT has no default targets, or whose layers it does not all adapt: what they are adapted with.
TARGETS = {
    "Mamba": ["in_proj", "x_proj"], "DistilBERT classifier": ["q_lin", "v_lin"], "DistilBERT": ["q_lin", "ffn.lin1"],
    "ModernBERT": ["Wqkv", "Wo"],
}  # fmt: skip
MIXTURES = (
    *("Mixtral", "Qwen2 MoE", "Qwen3 MoE", "gpt-oss", "Llama 4", "Granite MoE", "DeepSeek-V3", "Nemotron-H"),
    *("PhiMoE", "Aria", "JetMoE"),
)
ROUTERS = ["gate.weight", "router.weight"]
MIXTURE_ROWS = {
    "all-linear": EVERYWHERE,
    "attention": {"target_modules": ["q_proj", "o_proj"], "use_dora": True},
    "experts": EXPERTS,
    "experts and attention": EXPERTS | {"target_modules": ["q_proj"], "use_rslora": True, "r": 2},
    "ranks": EXPERTS | {"rank_pattern": {"experts.down_proj": 2}, "alpha_pattern": {"experts.down_proj": 3}},
    "one projection": EXPERTS | {"target_parameters": ["experts.down_proj"]},
    "experts and routers": {
        "target_modules": ["o_proj"],
        "target_parameters": [*EXPERTS["target_parameters"], *ROUTERS],
    },
}
# Names of the experts' parameters where they differ.
PARAMETERS = {
    "Nemotron-H": {"gate_up_proj": "up_proj"},
    "JetMoE": {"experts.gate_up_proj": "input_linear.weight", "experts.down_proj": "output_linear.weight"},
}


def _rows(name):
    """The configurations of a model of transformers."""
    auto, targets = MODELS[name][0], {"target_modules": TARGETS.get(name, "all-linear")}
    if name in MIXTURES:
        rows = {row: dict(options) for row, options in MIXTURE_ROWS.items()}
        if name in ("Llama 4", "PhiMoE"):
            del rows["all-linear"]  # PEFT's layer fails on the two outputs of their routers
        if name == "JetMoE":  # its experts have a part of the attention, and its router is an nn.Linear
            rows = {"experts": rows["experts"], "all-linear": rows["all-linear"]}
        for options in rows.values():
            for old, new in PARAMETERS.get(name, {}).items():
                if parameters := options.get("target_parameters"):
                    options["target_parameters"] = [each.replace(old, new) for each in parameters]
        return rows
    if name in NAMES:
        embedding, head = NAMES[name]
        # PEFT's merge adds the updates of all copies of a layer to the weight that they share; its live model does not.
        repeated = {"repeated layers": EVERYWHERE | {"layer_replication": [[0, 2], [1, 2]]}} if name == "Llama" else {}
        # PEFT's live layer leaves out the bias of GPT-J's output layer.
        of_tokens = {} if name == "GPT-J" else {
            "tokens of each": SMALL | {"trainable_token_indices": {embedding: [0, 1, 3], head: [5, 2]}},
            "tokens of both": SMALL | {"trainable_token_indices": {embedding: [0, 3], head: [0, 3]}},
        }  # fmt: skip
        return (
            repeated
            | of_tokens
            | GENERAL
            | {
                "embedding": {"target_modules": [embedding]},
                "head": {"target_modules": [head]},
                "embedding and head": {"target_modules": [embedding, head]},
                "embedding saved": EVERYWHERE | {"modules_to_save": [embedding]},
                "head saved": EVERYWHERE | {"modules_to_save": [head]},
                "both saved": EVERYWHERE | {"modules_to_save": [embedding, head]},
                "both saved and tied": EVERYWHERE | {"modules_to_save": [embedding, head], "ensure_weight_tying": True},
                "DoRA on the embedding": {"target_modules": [embedding], "use_dora": True},
            }
        )
    rows = {"linear": targets}
    if name != "AFMoE":  # PEFT turns its router into a parameter, which takes no DoRA
        rows["DoRA"] = targets | {"use_dora": True}
    if auto in (SEQ2SEQ, MASKED, CLASSIFIER):
        rows["all biases"] = targets | {"bias": "all"}
    if auto == SEQ2SEQ or name in ("BERT classifier", "RoBERTa classifier", "Llama classifier"):
        rows["tokens"] = targets | {"trainable_token_indices": [0, 1, 3]}
    if name == "ResNet":
        rows["norms saved"] = {"target_modules": ["convolution"], "modules_to_save": ["classifier", "normalization"]}
    return rows


CONFIGURATIONS = CUSTOM | {name: _rows(name) for name in MODELS}

# Of these, what PEFT loads after eckart changed it: every kind once.
REWRITTEN = {
    "mlp": [
        "both", "DoRA on both", "DoRA and saved", "biases with DoRA", "LoRA bias and all biases", "MiCA", "VeLoRA",
        "ranks, alphas and rsLoRA", "a module and a parameter", "parameters of different ranks", "orthogonal",
    ],
    "normalized": ["batch norm saved", "biases and norm"],
    "recurrent": ["GRU saved"],
    "deep": ["two layers of four", "layers but one", "a rank for each layer", "output saved", "DoRA everywhere"],
    "nested": ["digits", "one of a dictionary saved"],
    "tokens": ["all three", "DoRA on both", "tokens out of order", "saved embedding", "LoRA bias on Conv1D"],
    "conv1d": ["with the head", "LoRA bias"],
    "conv2d": ["ranks", "DoRA with the head", "a parameter next to it"],
    "conv2d in groups": ["saved"],
    "conv3d": ["DoRA"],
    "attention": ["ranks", "saved"],
    "bare": ["all", "ranks"],
    "routed": ["all", "router as a parameter"],
    "Llama": [row for row in GENERAL if row != "aLoRA"] + ["embedding and head", "both saved", "repeated layers"],
    "Llama, tied": ["tokens", "tokens of each", "tokens of both", "embedding and head", "both saved and tied"],
    "GPT-2": ["patterns", "DoRA", "head saved"],
    "Gemma 3": ["DoRA on the embedding"],
    "Qwen3.5": ["linear"],
    "Qwen3 MoE": ["all-linear", "ranks"],
    "gpt-oss": ["experts and attention"],
    "Llama 4": ["experts"],
    "Nemotron-H": ["experts"],
    "T5": ["tokens"],
    "BART": ["all biases"],
    "BERT": ["all biases"],
    "RoBERTa classifier": ["all biases", "tokens"],
    "ResNet": ["norms saved"],
}  # fmt: skip

# Those whose merged model is extracted again, with what the adapter then saves.
EXTRACTED = {
    "mlp": {"both": (), "DoRA on both": (), "all biases": ["bias"]},
    "normalized": {"batch norm saved": ["between", "second"]},
    "deep": {"two layers of four": ()},
    "nested": {"digits": ()},
    "tokens": {"all three": (), "some tokens": ["emb"]},
    "conv1d": {"with the head": ()},
    "conv2d": {"DoRA with the head": ()},
    "conv3d": {"plain": ()},
    "GPT-2": {"patterns": (), "embedding saved": ["wte"]},
    "Llama, tied": {"tokens": ["embed_tokens"], "tokens of both": ["lm_head", "embed_tokens"]},
    **{name: {"linear": ()} for name in ("Qwen3.5", "Granite MoE, shared", "Granite 4", "AFMoE")},
    "Nemotron-H": {"experts": ()},
    **{name: {"experts and routers": ()} for name in ("Mixtral", "Granite MoE", "Llama 4", "PhiMoE", "Aria")},
    "JetMoE": {"experts": ()},
    "T5": {"DoRA": ()},
    "BERT classifier": {"linear": ["classifier"]},
    "ViT": {"linear": ["classifier"]},
}

# Bases with two adapters that select or save different modules.
COMBINED = [
    ("deep", {"target_modules": ["down"], "exclude_modules": r"layers\.3.*"}, {"target_modules": ["up", "down"]}),
    (
        "deep",
        {"target_modules": ["down"], "layers_to_transform": [2], "layers_pattern": "layers"},
        {"target_modules": ["up"], "use_rslora": True},
    ),
    ("tokens", {"target_modules": ["head"], "bias": "all"}, {"target_modules": ["mix"], "modules_to_save": ["emb"]}),
    ("tokens", {"target_modules": ["head"]}, {"target_modules": ["mix"], "trainable_token_indices": {"emb": [5, 2]}}),
    ("routed", {"target_modules": ["router"]}, {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
    (
        "Llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 2]}},
        {"target_modules": ["v_proj"], "trainable_token_indices": {"lm_head": [7]}},
    ),
    ("Qwen2", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}, {"target_modules": ["o_proj"]}),
    ("Qwen2", {"target_modules": ["q_proj"], "bias": "all"}, {"target_modules": ["q_proj", "v_proj"]}),
    ("Qwen2", {"target_modules": ["q_proj"], "lora_bias": True}, {"target_modules": ["q_proj"], "bias": "lora_only"}),
]
