# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Lab 3: A LoRA layer from scratch
#
# LoRA freezes a weight W₀ and learns a change next to it, as a product of two thin factors:
#
#     h = W₀·x + (α/r)·B·A·x
#
# A takes the input down to r numbers, B takes these up again. You will build this layer twice, in NumPy and in torch,
# compare it with the library's, count what it saves, and make the three mistakes that everybody makes once.

# %%
import math

import eckart
import numpy as np
import torch
import torch.nn.functional as F
from eckart import reference
from eckart.report.figures import style
from torch import nn

from labkit import check, show, table

# %% [markdown]
# ## 1. The layer in NumPy
#
# Three decisions make it work. W₀ is never changed. A starts small and random. B starts at **zero**, so that the
# product is zero and the layer begins as the layer it was: not nearly, exactly.


# %%
class HandLoRA:
    """W0 (out, in) stays; A (rank, in) and B (out, rank) learn. Inputs are columns."""

    def __init__(self, W0, rank, alpha, rng):
        out, inner = W0.shape
        self.W0, self.scaling = W0, alpha / rank
        self.A = rng.uniform(-1, 1, (rank, inner)) / np.sqrt(inner)
        self.B = np.zeros((out, rank))

    def __call__(self, x):
        return self.W0 @ x + self.scaling * (self.B @ (self.A @ x))

    def merge(self):
        return self.W0 + self.scaling * self.B @ self.A


rng = np.random.default_rng(0)
W0, x = rng.standard_normal((24, 32)), rng.standard_normal((32, 100))
layer = HandLoRA(W0, rank=2, alpha=4, rng=rng)
check("outputs that differ from the base at the start", int((layer(x) != W0 @ x).sum()), 0)

# %% [markdown]
# Now let it learn. The task: behave like W₀ + Δ, where Δ is a hidden change of rank 2. The chain rule gives both
# gradients in a line each. With G the gradient of the loss with respect to h:
#
# - of B: s·G·(A·x)ᵀ
# - of A: s·Bᵀ·G·xᵀ
#
# At the start B is zero, so A has **no** gradient at all. B moves first, and wakes A up.

# %%
hidden = rng.standard_normal((24, 2)) @ rng.standard_normal((2, 32)) / 4
target = (W0 + hidden) @ x
history = []
for step in range(301):
    difference = layer(x) - target
    G = difference / x.shape[1]
    grad_B = layer.scaling * G @ (layer.A @ x).T
    grad_A = layer.scaling * layer.B.T @ G @ x.T
    if step == 0:
        check("gradient of A at the first step", np.linalg.norm(grad_A), 0)
        check("gradient of B at the first step is not zero", bool(np.linalg.norm(grad_B) > 0.1), True)
    sizes = [np.linalg.norm(part) for part in (layer.A, layer.B, layer.scaling * layer.B @ layer.A)]
    history.append((0.5 * (difference**2).sum() / x.shape[1], *sizes))
    layer.A, layer.B = layer.A - 0.01 * grad_A, layer.B - 0.01 * grad_B
history = np.array(history)
check("loss at the start", history[0, 0], 34.82, within=0.01)
check("loss after 300 steps, of that at the start", history[-1, 0] / history[0, 0], 0, within=1e-5)
check("update learned, against the hidden one", sizes[2] / np.linalg.norm(hidden), 1, within=1e-3)

# %%
figure = style.new_figure(height_inches=3.8)
left, right = figure.subplots(1, 2)
left.semilogy(history[:, 0], color=style.COLORS[0], linewidth=1.8)
style.dress(left, x="step", y="loss", title="loss, logarithmic")
for position, name in enumerate(("‖A‖", "‖B‖", "‖(α/r)·B·A‖")):
    right.plot(history[:, 1 + position], label=name, linewidth=1.8, **style.line_style(position))
style.dress(right, x="step", y="norm", title="sizes of the factors and of the update")
right.legend(frameon=False)
style.headline(
    figure,
    "B grows from zero, and the update with it",
    "rank 2 learns a hidden change of rank 2, plain gradient descent",
)
show(figure, "The loss falls to nothing; the norm of B starts at zero and grows, and A follows")

# %% [markdown]
# Merged into one weight, the layer costs nothing when it is used. And the library's reference, the one that its tests
# compare every other layer with, gives the same outputs and gradients. (A sample is a row there, so everything is
# transposed.)

# %%
check("merged weight against the layer", np.abs(layer.merge() @ x - layer(x)).max(), 0, within=1e-13)

same = reference.LoRA(W0, lora_A=layer.A, lora_B=layer.B, alpha=4)
check("outputs against eckart.reference", np.abs(same.forward(x.T).T - layer(x)).max(), 0, within=1e-13)
check("merged weights against eckart.reference", np.abs(same.merge() - layer.merge()).max(), 0, within=1e-14)
G = rng.standard_normal((24, 100))
gradients = same.backward(x.T, G.T)
by_hand = layer.scaling * G @ (layer.A @ x).T, layer.scaling * layer.B.T @ G @ x.T
check("gradient of B against eckart.reference", np.abs(gradients.lora_B - by_hand[0]).max(), 0, within=1e-12)
check("gradient of A against eckart.reference", np.abs(gradients.lora_A - by_hand[1]).max(), 0, within=1e-12)

# %% [markdown]
# ## 2. What it saves
#
# First a small picture. For a 4×4 weight at rank 2, B has 8 numbers and A has 8: together 16, as many as the weight.
# **Small matrices save nothing.** The factors grow with the side, the weight with its square.

# %%
B, A = rng.integers(-2, 3, (4, 2)), rng.integers(-2, 3, (2, 4))
figure = style.new_figure(height_inches=3.2)
panels = figure.subplots(1, 3, width_ratios=(2, 4, 4))
for axes, matrix, name in zip(panels, (B, A, B @ A), ("B, 4×2", "A, 2×4", "B·A, 4×4"), strict=True):
    axes.imshow(matrix, cmap="RdBu", vmin=-9, vmax=9)
    for place, number in np.ndenumerate(matrix):
        axes.text(place[1], place[0], str(number).replace("-", "−"), ha="center", va="center")
    axes.set_title(name, fontsize=10)
    axes.set_axis_off()
style.headline(figure, "At 4×4 and rank 2 the factors are as large as the weight", "8 + 8 numbers for 16")
show(figure, "B, 4 by 2, times A, 2 by 4, gives a 4 by 4 matrix; numbers written into the cells")
check("numbers in B and A for 4×4 at rank 2", B.size + A.size, 16)

# %% [markdown]
# Now the sizes of real layers. We put an adapter into a real 4096×4096 layer and let the library count.

# %%
large = nn.Sequential(nn.Linear(4096, 4096, bias=False))
injection = eckart.inject(large, eckart.LoRAConfig(rank=16))
check("numbers in a 4096×4096 weight", large[0].base_layer.weight.numel(), 16_777_216)
check("numbers that train at rank 16", injection.trainable_params, 131_072)
check("fewer, in percent", 100 * (1 - 131_072 / 16_777_216), 99.2, within=0.05)
del large

check("numbers in a 768×768 weight", 768 * 768, 589_824)
check("numbers of its adapter at rank 16", 16 * (768 + 768), 24_576)
check("fewer for 768×768, in percent", 100 * (1 - 24_576 / 589_824), 95.8, within=0.05)

# %%
sides, ranks = (768, 1024, 4096), [2**power for power in range(9)]
rows = []
for r in ranks:
    cells = [(f"{r * 2 * side:,}", f"{1 - r * 2 * side / side**2:.1%}") for side in sides]
    rows.append((r, *(cell for pair in cells for cell in pair)))
headers = ("rank", *(text for side in sides for text in (f"{side}×{side}", "fewer")))
table(headers, rows, "Numbers that train, and how many fewer than in the full weight")
check("numbers for 1024×1024 at rank 8", 8 * 2 * 1024, 16_384)
check("fewer for 768×768 at rank 256, in percent", 100 * (1 - 256 * 2 * 768 / 768**2), 33.3, within=0.05)

# %%
figure = style.new_figure(height_inches=3.8)
axes = figure.subplots()
for position, side in enumerate(sides):
    places = np.arange(len(ranks)) + 0.27 * (position - 1)
    shares = [200 * r / side for r in ranks]
    axes.bar(places, shares, width=0.25, color=style.COLORS[position], label=f"{side}×{side}")
axes.set_xticks(np.arange(len(ranks)), [str(r) for r in ranks])
axes.set_yscale("log")
axes.axhline(100, color=style.SOFT, linewidth=1, linestyle=(0, (4, 3)))
axes.annotate("the full weight", (4, 105), ha="center", va="bottom", color=style.SOFT, fontsize=9)
style.dress(axes, x="rank", y="numbers that train, % of the weight")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.9))
style.headline(figure, "The larger the layer, the more a rank saves", "2·r / side: doubling the side halves the share")
show(figure, "Bars of the share that trains over ranks 1 to 256 for three layer sizes; 4096 is always the smallest")

# %% [markdown]
# ### Exercise
#
# At which rank would an adapter of a 4096×4096 layer train as many numbers as the layer has?

# %% tags=["solution"]
# 2·4096·r = 4096², so r = 2048: half the side, as in Lab 1.
check("rank at which nothing is saved", 4096**2 / (2 * 4096), 2048)

# %% [markdown]
# ## 3. The layer in torch
#
# Now one that trains for real: it wraps an `nn.Linear`, drops some inputs on the way to A, starts A by Kaiming's rule
# with a = √5 (which is uniform in ±1/√in) and B at zero, and can be merged and unmerged. On demand the bias trains
# too.


# %%
class LoRALinear(nn.Module):
    """A frozen `nn.Linear` and a thin path next to it."""

    def __init__(self, base, rank, alpha, dropout=0.0, train_bias=False):
        super().__init__()
        base.requires_grad_(False)
        if train_bias:
            base.bias.requires_grad_(True)
        self.base, self.scaling, self.merged = base, alpha / rank, False
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x):
        h = self.base(x)
        if self.merged:
            return h
        return h + self.scaling * F.linear(F.linear(self.dropout(x), self.lora_A), self.lora_B)

    @torch.no_grad()
    def merge(self):
        self.base.weight += self.scaling * self.lora_B @ self.lora_A
        self.merged = True

    @torch.no_grad()
    def unmerge(self):
        self.base.weight -= self.scaling * self.lora_B @ self.lora_A
        self.merged = False


def largest(difference):
    """The largest entry, whatever its sign."""
    return float(difference.detach().abs().max())


def trainable(model):
    """How many numbers train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


torch.manual_seed(0)
base = nn.Linear(256, 256)
x = torch.randn(64, 256)
expected, original = base(x), base.weight.clone()
by_hand = LoRALinear(base, rank=8, alpha=16)
check("outputs of the torch layer that differ at the start", int((by_hand(x) != expected).sum()), 0)
check("largest entry of A, times √in", 16 * largest(by_hand.lora_A), 1, within=0.01)
check("numbers that train, rank 8", trainable(by_hand), 8 * (256 + 256))
check("with a trained bias", trainable(LoRALinear(nn.Linear(256, 256), 8, 16, train_bias=True)), 8 * 512 + 256)

# %% [markdown]
# Give B some values, as training would, and look at dropout and merging. Dropout acts in training alone, and on the
# thin path alone.

# %%
nn.init.normal_(by_hand.lora_B, std=0.02)
by_hand.dropout.p = 0.5
in_training = by_hand(x)
by_hand.eval()
unmerged = by_hand(x)
check("dropout changes outputs in training", bool((in_training != unmerged).any()), True)

by_hand.merge()
check("merged outputs against unmerged ones", largest(by_hand(x) - unmerged), 0, within=1e-5)
by_hand.unmerge()
not_restored = int((base.weight != original).sum())
print(f"{not_restored:,} of {original.numel():,} weights were not restored")
check("subtracting again restores every weight", bool(not_restored == 0), False)

# %% [markdown]
# A surprise: W + Δ − Δ is not W. Both steps round, and some weights end a last digit away from where they were. The
# library's `merge_weights` remembers what the rounding took, and `unmerge_weights` gives back every bit.
#
# Here is eckart's layer with the same factors: same outputs, same gradients, and an exact inverse.

# %%
base.weight.data.copy_(original)
model = nn.ModuleDict({"layer": nn.Linear(256, 256)})
model.load_state_dict({"layer.weight": original, "layer.bias": base.bias})
factors = eckart.adapter.AdapterLayer(by_hand.lora_A.detach(), by_hand.lora_B.detach(), alpha=16.0)
eckart.inject_adapter(model, eckart.Adapter({"layer": factors}))
theirs = model["layer"].factors("default")

by_hand(x).square().mean().backward()
model["layer"](x).square().mean().backward()
check("outputs against eckart's", largest(model["layer"](x) - by_hand(x)), 0, within=1e-5)
check("gradient of A against eckart's", largest(theirs.lora_A.grad - by_hand.lora_A.grad), 0, within=1e-6)
check("gradient of B against eckart's", largest(theirs.lora_B.grad - by_hand.lora_B.grad), 0, within=1e-6)

eckart.merge_weights(model)
check("merged by eckart, against unmerged", largest(model["layer"](x) - unmerged), 0, within=1e-5)
eckart.unmerge_weights(model)
check("weights not restored by eckart", int((model["layer"].base_layer.weight != original).sum()), 0)

# %% [markdown]
# ## 4. Freezing really freezes
#
# A transformer block has more than its attention. Ours has 256 features: four attention matrices without biases, an
# MLP of 1,024, and two norms. The attention is a real one: eight heads, queries against keys, a softmax.


# %%
class Attention(nn.Module):
    """Eight heads; every token looks at all others."""

    def __init__(self, dim=256, heads=8):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each after a norm and with a residual connection."""

    def __init__(self, dim=256):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def wrap(block, names, rank, alpha):
    """Replace the layers of the attention by hand-made ones."""
    for name in names:
        setattr(block.attention, name, LoRALinear(getattr(block.attention, name), rank, alpha))
    return block


# %% [markdown]
# Wrap q, k, v and o at rank 8. Each wrapper freezes its own base, so all is well? Count.

# %%
torch.manual_seed(0)
careless = wrap(Block(), "qkvo", rank=8, alpha=16)
total = sum(parameter.numel() for parameter in careless.parameters())
check("numbers in the block with adapters", total, 805_120)
check("numbers that train where only targets were wrapped", trainable(careless), 542_976)
parts = {"MLP": careless.mlp, "norms": nn.ModuleList([careless.norm1, careless.norm2]), "attention": careless.attention}
table(("part", "numbers that train"), [(name, f"{trainable(part):,}") for name, part in parts.items()])

# %% [markdown]
# The MLP and the norms still train: two thirds of the block. The loss falls nicely, and nobody notices until the
# adapter is used on the base model, where the trained MLP is missing. **Freeze the full model first, then wrap.**
# `eckart.inject` does.

# %%
torch.manual_seed(0)
careful = Block()
careful.requires_grad_(False)
wrap(careful, "qkvo", rank=8, alpha=16)
check("numbers that train where the block was frozen first", trainable(careful), 16_384)

torch.manual_seed(0)
block = Block()
injection = eckart.inject(block, eckart.LoRAConfig(rank=8, alpha=16, target=["q", "k", "v", "o"]))
print(injection.modules)
check("numbers that train by eckart.inject", injection.trainable_params, 16_384)
check("numbers in the block by eckart", injection.total_params, 805_120)


# %% [markdown]
# Counting is one thing, training another. Let both blocks take ten steps, and compare every weight with what it was.


# %%
def others_changed(block):
    """Take ten steps; how many numbers outside the attention changed."""
    before = {name: value.clone() for name, value in block.state_dict().items() if "attention" not in name}
    optimiser = torch.optim.AdamW([p for p in block.parameters() if p.requires_grad], lr=1e-3)
    x = torch.randn(16, 32, 256, generator=torch.Generator().manual_seed(1))
    for _ in range(10):
        optimiser.zero_grad()
        (block(x) - x.roll(1, dims=1)).square().mean().backward()
        optimiser.step()
    after = block.state_dict()
    return sum(int((after[name] != value).sum()) for name, value in before.items())


outside = sum(value.numel() for name, value in block.state_dict().items() if "attention" not in name)
changed = {"only wrapped": others_changed(careless), "frozen, then wrapped": others_changed(careful)}
changed["eckart.inject"] = others_changed(block)
table(("method", "changed"), [(name, f"{count:,} of {outside:,}") for name, count in changed.items()], "MLP and norms")
check("most of MLP and norms changed where only wrapped", bool(changed["only wrapped"] > 0.99 * outside), True)
check("numbers changed where frozen first", changed["frozen, then wrapped"], 0)
check("numbers changed by eckart.inject", changed["eckart.inject"], 0)

# %% [markdown]
# ## 5. Adapters on q and v
#
# The LoRA paper adapts the queries and the values alone. How much trains then, at which rank?

# %%
rows = []
for rank, numbers in zip((4, 8, 16, 32), (4_096, 8_192, 16_384, 32_768), strict=True):
    injection = eckart.inject(attention := Attention(), eckart.LoRAConfig(rank=rank, target=["q", "v"]))
    check(f"numbers that train on q and v at rank {rank}", injection.trainable_params, numbers)
    frozen = injection.total_params - injection.trainable_params
    rows.append((rank, f"{injection.trainable_params:,}", f"{injection.trainable_params / frozen:.2%}"))
table(
    ("rank", "numbers that train", "of the attention"),
    rows,
    f"Adapters on q and v; the attention has {frozen:,} numbers",
)

# %% [markdown]
# Beware of examples whose "attention" is only `o(v(x))`, to be short. Tokens never meet in it, and q has nothing to
# do: an adapter on q gets no gradient at all. It trains without an error, and learns nothing.


# %%
class NoAttention(Attention):
    """Not an attention: every token is alone."""

    def forward(self, x):
        return self.o(self.v(x))


x = torch.randn(2, 32, 256)
changed_first = x.clone()
changed_first[:, 0] += 1
for kind in (Attention, NoAttention):
    torch.manual_seed(0)
    eckart.inject(model := kind(), eckart.LoRAConfig(rank=4, target=["q", "v"]))
    model(x).square().mean().backward()
    q, v = (model.get_submodule(name).factors("default").lora_B.grad for name in ("q", "v"))
    meets = bool((model(x)[:, 5] != model(changed_first)[:, 5]).any())
    check(f"{kind.__name__}: the first token reaches the sixth", meets, kind is Attention)
    check(f"{kind.__name__}: the adapter on q has a gradient", q is not None and bool(q.any()), kind is Attention)
    check(f"{kind.__name__}: the adapter on v has a gradient", bool(v.any()), True)

# %% [markdown]
# ## 6. Three classic mistakes
#
# A small task for all three: a 64×64 layer is to behave like W₀ + Δ, where Δ has rank 4. Rank 8 is more than enough,
# and a correct layer learns it.

# %%
torch.manual_seed(0)
original = nn.Linear(64, 64, bias=False)
change = torch.randn(64, 4) @ torch.randn(4, 64) / 32
inputs = torch.randn(1024, 64)
wanted = inputs @ (original.weight + change).T.detach()


def fresh(rank=8, alpha=16.0):
    """The original in a new wrapper."""
    torch.manual_seed(1)
    base = nn.Linear(64, 64, bias=False)
    base.load_state_dict(original.state_dict())
    return LoRALinear(base, rank, alpha)


def loss_of(model):
    return (model(inputs) - wanted).square().mean()


def train(model, steps=300):
    """The loss before each step and after the last."""
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return [*losses, float(loss_of(model).detach())]


correct = fresh()
losses = {"correct": train(correct)}
base_loss = float(loss_of(original).detach())
check("loss of the base alone", base_loss, 0.2328, within=0.0001)
check("loss of a correct layer at the start, less the base's", losses["correct"][0] - base_loss, 0, within=1e-7)
check("loss of a correct layer after training, of the base's", losses["correct"][-1] / base_loss, 0, within=1e-3)

# %% [markdown]
# ### Mistake 1: the base is not frozen
#
# Forget to freeze W₀ and the loss falls even faster, for more numbers train. The failure shows when the adapter is
# saved, sent to somebody else, and put on the *original* base: part of what was learned stayed in the base that you
# changed.

# %%
unfrozen = fresh()
unfrozen.base.requires_grad_(True)
losses["base not frozen"] = train(unfrozen)
rows = []
for name, model in (("correct", correct), ("base not frozen", unfrozen)):
    shipped = fresh()
    shipped.load_state_dict({"lora_A": model.lora_A, "lora_B": model.lora_B, "base.weight": original.weight})
    where = float(loss_of(shipped).detach())
    rows.append((name, f"{losses[name][-1]:.1e}", f"{where:.1e}", int((model.base.weight != original.weight).sum())))
    losses[f"{name}, shipped"] = [where]
table(
    ("layer", "loss in training", "loss on the original base", "base weights changed"), rows, "Where the learning went"
)
check("loss of the correct adapter on the original base", losses["correct, shipped"][0] / base_loss, 0, within=1e-3)
lost = losses["base not frozen, shipped"][0] / base_loss
check("loss of the other on the original base, of the base's", lost, 0.418, within=0.02)

# %% [markdown]
# ### Mistake 2: α too small for r
#
# The update is scaled by α/r. Raise the rank from 8 to 64 but leave α at 1, and the scale falls to 1/64: the factors
# must grow 64 times as large for the same update, and the optimizer moves them by the same small steps. α = 2·r keeps
# the scale at 2 whatever the rank.

# %%
for alpha in (1.0, 8.0, 64.0, 128.0):
    losses[f"r = 64, α = {alpha:g}"] = train(fresh(rank=64, alpha=alpha))


def steps_to_one_percent(losses):
    """The first step at which the loss is below a hundredth of the base's."""
    return next(step for step, loss in enumerate(losses) if loss < 0.01 * base_loss)


runs = {name: run for name, run in losses.items() if name.startswith("r = 64")}
rows = [(name, f"{run[100] / base_loss:.2%}", steps_to_one_percent(run)) for name, run in runs.items()]
table(("setting", "loss left after 100 steps", "steps until 1 % is left"), rows, "The same 64 ranks, scaled by α/64")
check("α = 1: loss left after 100 steps, of the base's", runs["r = 64, α = 1"][100] / base_loss, 0.43, within=0.03)
check("α = 1: steps until 1 % is left", steps_to_one_percent(runs["r = 64, α = 1"]), 277, within=10)
check("α = 128: steps until 1 % is left", steps_to_one_percent(runs["r = 64, α = 128"]), 41, within=4)

# %% [markdown]
# ### Mistake 3: B does not start at zero
#
# With a random B the layer begins somewhere else than the model that you wanted to improve. Training first has to
# undo the damage.

# %%
damaged = fresh()
nn.init.kaiming_uniform_(damaged.lora_B, a=math.sqrt(5))
losses["B not zero"] = train(damaged)
first = losses["B not zero"][0]
recovered = next(step for step, loss in enumerate(losses["B not zero"]) if loss < base_loss)
check("loss at the start with a random B, of the base's", first / base_loss, 2.86, within=0.01)
check("steps until it is as good as the base was", recovered, 37, within=5)

# %%
figure = style.new_figure(height_inches=4.2)
axes = figure.subplots()
for position, name in enumerate(("correct", "base not frozen", "r = 64, α = 1", "B not zero")):
    axes.semilogy(losses[name], label=name, linewidth=1.8, **style.line_style(position))
shipped, orange = losses["base not frozen, shipped"][0], style.line_style(1)["color"]
axes.plot(300, shipped, "o", color=orange, clip_on=False)
axes.annotate("its adapter on the original base", (294, 0.75 * shipped), ha="right", va="top", color=orange, fontsize=9)
axes.axhline(base_loss, color=style.SOFT, linewidth=1, linestyle=(0, (4, 3)))
axes.annotate("the base alone", (200, 1.2 * base_loss), color=style.SOFT, fontsize=9)
axes.set_ylim(1e-7, 3)
style.dress(axes, x="step", y="loss, logarithmic")
axes.legend(frameon=False, loc="lower left")
style.headline(
    figure,
    "The curve that looks best belongs to the adapter that is worth least",
    "a 64×64 layer learns a change of rank 4; Adam, 0.002",
)
show(
    figure,
    "Losses of a correct layer and of three mistakes; without freezing it looks best until its adapter is shipped",
)

# %% [markdown]
# ### Exercise
#
# If B = 0 is good, why not start A at zero too?

# %% tags=["solution"]
# Each gradient is a product with the other factor. If both are zero, so are both gradients, and nothing ever moves.
dead = fresh()
nn.init.zeros_(dead.lora_A)
stuck = train(dead, steps=20)
check("steps at which the loss changed, both factors zero", sum(loss != stuck[0] for loss in stuck), 0)
check("A after training", largest(dead.lora_A), 0)

# %% [markdown]
# ## What you have seen
#
# - The layer is two lines: W₀ frozen, B·A next to it, scaled by α/r. B starts at zero, so it begins exactly as its
#   base.
# - It trains 2·r/side of a square weight: 0.8 % of 4096×4096 at rank 16.
# - Freeze the full model before you wrap, and count what trains.
# - Merging is free at run time; coming back to the bit needs more than a subtraction.
# - Keep α in step with r, and B at zero.
#
# Lab 4 puts these layers into a block and watches them learn.
