"""Small whole models, and what tests ask of them."""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


class Block(nn.Module):
    """The lessons' transformer block: width 256, 8 heads, attention of four plain projections, MLP, norms."""

    def __init__(self, width=256, heads=8):
        super().__init__()
        self.heads = heads
        for name in ("q", "k", "v", "o"):
            setattr(self, f"{name}_proj", nn.Linear(width, width, bias=False))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (
            project(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def llama(*, tied=False, dtype=torch.float64):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).double().eval()


TOKENS = torch.tensor([[1, 5, 9, 30, 2, 7], [4, 4, 0, 31, 8, 3]])


def loss_of(model):
    return model(input_ids=TOKENS, labels=TOKENS).loss


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.inner = nn.ModuleDict({"again": self.shared})

    def forward(self, x):
        return self.inner["again"](torch.tanh(self.shared(x)))


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def steps(model, loss, count=3):
    """A few steps of training of whatever trains."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1, eps=1e-3)  # 1e-8 is zero in float16
    for _ in range(count):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
