"""Small modules of every kind that PEFT adapts, which no library names: the custom half of the sweep's bases."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

WIDTH = 8


def with_random_adapter(model, config, folder, seed=1):
    """The model with an adapter of PEFT's whose parameters are all random, saved to a folder."""
    from peft import get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


class Mlp(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.first = nn.Linear(WIDTH, 12, bias=bias)
        self.second = nn.Linear(12, 6, bias=bias)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Normalized(Mlp):
    def __init__(self):
        super().__init__()
        self.before = nn.LayerNorm(WIDTH)
        self.between = nn.BatchNorm1d(12)

    def forward(self, x):
        return self.second(self.between(self.first(self.before(x))))


class Recurrent(Mlp):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(12, 12, batch_first=True)

    def forward(self, x):
        return self.second(self.gru(self.first(x)[:, None])[0][:, 0])


class Deep(nn.Module):
    """Six blocks in a list, with an output that repeats the name of a block's layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(8, 8), "down": nn.Linear(8, 8)}) for _ in range(4))
        self.up = nn.Linear(8, 6)

    def forward(self, x):
        for block in self.layers:
            x = x + block["down"](torch.tanh(block["up"](x)))
        return self.up(x)


class Nested(nn.Module):
    """Sequentials in sequentials: names of digits."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.Linear(8, 12), nn.Tanh()), nn.Sequential(nn.Linear(12, 8)))
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 3), "b": nn.Linear(8, 3)})

    def forward(self, x):
        x = self.body(x)
        return torch.cat([head(x) for head in self.heads.values()], 1)


class Tokens(nn.Module):
    """An embedding, a Conv1D whose weight is stored (in, out), and a head."""

    def __init__(self, width=10):
        super().__init__()
        self.emb = nn.Embedding(20, 8)
        self.mix = Conv1D(width, 8)
        self.head = nn.Linear(width, 6)

    def forward(self, ids):
        return self.head(torch.tanh(self.mix(self.emb(ids))))


class SquareTokens(Tokens):
    def __init__(self):
        super().__init__(width=8)


class Tied(nn.Module):
    """One weight as embedding and as output layer."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(20, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.body(self.emb(ids))))


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.last = nn.Linear(8, 6)

    def forward(self, x):
        return self.last(self.again(torch.tanh(self.first(x))))


class Convolution(nn.Module):
    def __init__(self, kind, *sizes, **options):
        super().__init__()
        self.conv = kind(*sizes, **options)
        self.head = nn.LazyLinear(6)

    def forward(self, x):
        return self.head(torch.tanh(self.conv(x)).flatten(1))


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.head = nn.Linear(8, 6)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 6)

    def forward(self, x):
        return self.head(self.encoder(x))


class Matrix(nn.Module):
    """A bare parameter, stored (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


class Table(nn.Module):
    """A bare parameter of another name than weight."""

    def __init__(self, rows, columns):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(rows, columns))

    def forward(self, x):
        return x @ self.rows.T


class Mixture(nn.Module):
    """Matrices of several experts, of which all are added up."""

    def __init__(self, names=("up_proj", "down_proj"), middle=10, width=8, experts=3):
        super().__init__()
        self.names = names
        setattr(self, names[0], nn.Parameter(torch.randn(experts, middle, width) / 4))
        setattr(self, names[1], nn.Parameter(torch.randn(experts, width, middle) / 4))

    def forward(self, x):
        up, down = (getattr(self, name) for name in self.names)
        return torch.einsum("eoh,beh->bo", down, torch.tanh(torch.einsum("ehi,bi->beh", up, x)))


class Bare(nn.Module):
    """Parameters that are no module's weight, next to a mixture without the usual names."""

    def __init__(self, width=12):
        super().__init__()
        self.first = Matrix(8, width)
        self.mixture = Mixture(width=width)
        self.table = Table(6, width)

    def forward(self, x):
        return self.table(self.mixture(torch.tanh(self.first(x))))


class Gated(nn.Module):
    """Fused experts under the usual names, stored (out, in)."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 20, 8) / 4)
        self.down_proj = nn.Parameter(torch.randn(3, 8, 10) / 4)

    def forward(self, x, share):
        gate, up = torch.einsum("ehi,bi->beh", self.gate_up_proj, x).chunk(2, -1)
        return torch.einsum("eoh,beh,be->bo", self.down_proj, torch.tanh(gate) * up, share)


class Routed(nn.Module):
    """A router and fused experts, in a layer of a list."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"router": nn.Linear(8, 3, bias=False), "experts": Gated()}) for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["experts"](x, torch.softmax(layer["router"](x), -1))
        return x


def numbers(*shape):
    return lambda: torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def ids():
    return torch.arange(20).view(2, 10)


# Name: how it is built, and its input.
MODULES = {
    "mlp": (Mlp, numbers(5, 8)),
    "mlp without bias": (lambda: Mlp(bias=False), numbers(5, 8)),
    "normalized": (Normalized, numbers(5, 8)),
    "recurrent": (Recurrent, numbers(5, 8)),
    "deep": (Deep, numbers(5, 8)),
    "nested": (Nested, numbers(5, 8)),
    "tokens": (Tokens, ids),
    "square tokens": (SquareTokens, ids),
    "tied": (Tied, ids),
    "twice": (Twice, numbers(5, 8)),
    "conv1d": (lambda: Convolution(nn.Conv1d, 4, 6, 3), numbers(2, 4, 7)),
    "conv1d of kernel 1": (lambda: Convolution(nn.Conv1d, 4, 6, 1), numbers(2, 4, 7)),
    "conv1d of one channel": (lambda: Convolution(nn.Conv1d, 1, 1, 2), numbers(2, 1, 7)),
    "conv2d": (lambda: Convolution(nn.Conv2d, 4, 6, 3, padding=1), numbers(2, 4, 5, 5)),
    "conv2d without bias": (lambda: Convolution(nn.Conv2d, 4, 6, 3, bias=False), numbers(2, 4, 5, 5)),
    "conv2d of kernel 1": (lambda: Convolution(nn.Conv2d, 4, 6, 1), numbers(2, 4, 3, 3)),
    "conv2d, long": (lambda: Convolution(nn.Conv2d, 4, 6, (1, 3), stride=2), numbers(2, 4, 5, 5)),
    "conv2d in groups": (lambda: Convolution(nn.Conv2d, 4, 8, 3, groups=2), numbers(2, 4, 5, 5)),
    "depthwise conv2d": (lambda: Convolution(nn.Conv2d, 4, 4, 3, groups=4), numbers(2, 4, 5, 5)),
    "conv1d in groups": (lambda: Convolution(nn.Conv1d, 4, 8, 3, groups=4), numbers(2, 4, 7)),
    "conv3d": (lambda: Convolution(nn.Conv3d, 3, 5, 2), numbers(2, 3, 3, 3, 3)),
    "attention": (Attention, numbers(4, 2, 8)),
    "attention without bias": (lambda: Attention(bias=False, batch_first=True), numbers(4, 2, 8)),
    "encoder": (Encoder, numbers(4, 2, 8)),
    "bare": (Bare, numbers(5, 8)),
    "bare, square": (lambda: Bare(width=8), numbers(5, 8)),
    "other names": (lambda: nn.Sequential(Mixture(("first", "second"))), numbers(5, 8)),
    "square experts": (lambda: nn.Sequential(Mixture(middle=8)), numbers(5, 8)),
    "routed": (Routed, numbers(5, 8)),
}
