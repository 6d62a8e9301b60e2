# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Lab 4: Watching it learn
#
# An adapter can learn a task only if the change the task needs fits into its rank. In this lab you watch four
# trainings of one small transformer block: one that cannot succeed, one that can, one that fails for lack of rank,
# and the one that LoRA is made for. All of them are the same task, so you can see what makes the difference.
#
# You need lab 3: what the factors A and B are, and that B starts from zero.

# %%
import math
from statistics import fmean, stdev

import eckart
import torch
import torch.nn.functional as F
from eckart.report.figures import style
from eckart.training import DynamicsRecorder
from eckart.training.sweet_spot import Setting, find_sweet_spot
from torch import nn

from labkit import QUICK, check, packed, picture, show, table

WIDTH, HEADS, LENGTH = 256, 8, 32

# %% [markdown]
# ## 1. A block and a task
#
# The block is an ordinary transformer block: attention with eight heads, then a two-layer network. Two switches let
# us change it later: whether it knows the position of a token, and whether the input skips past the attention, as it
# does in most transformers.


# %%
class Block(nn.Module):
    def __init__(self, *, positions, skip):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up_proj, self.down_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        angles = torch.arange(LENGTH)[:, None] * 10_000 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
        table = torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)
        self.register_buffer("where", table if positions else torch.zeros(LENGTH, WIDTH), persistent=False)
        self.skip = skip

    def heads(self, x):
        return x.view(len(x), LENGTH, HEADS, WIDTH // HEADS).transpose(1, 2)

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = self.q_proj(h + self.where), self.k_proj(h + self.where), self.v_proj(h)
        mixed = F.scaled_dot_product_attention(self.heads(q), self.heads(k), self.heads(v))
        attended = self.o_proj(mixed.transpose(1, 2).flatten(2))
        h = x + attended if self.skip else attended
        return h + self.down_proj(F.gelu(self.up_proj(self.norm2(h))))


# %% [markdown]
# The task: each of 1,000 samples is a sequence of 32 random tokens, and the answer is the same sequence moved on by
# one place, a little smaller and with a little noise: y = 0.9·roll(x, 1) + 0.1·noise. So each place must report what
# its left neighbour contains.


# %%
def samples(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, count, LENGTH, WIDTH, generator=generator)
    return x, 0.9 * x.roll(1, dims=1) + 0.1 * noise


@torch.no_grad()
def loss_on(model, data):
    return F.mse_loss(model(data[0]), data[1]).item()


def train(model, draw, *, epochs, rate, batch=64, seed=0, held_out=None, after=None):
    """The losses of every epoch, on what was trained on and on what was not."""
    generator, (count, steps) = torch.Generator().manual_seed(seed), (len(draw(0)[0]), -(-len(draw(0)[0]) // batch))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * steps, pct_start=0.2)
    losses, held_losses = [], []
    for epoch in range(epochs):
        x, y = draw(epoch)
        total = 0.0
        for chosen in torch.randperm(count, generator=generator).split(batch):
            loss = F.mse_loss(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        losses.append(total / count)
        held_losses.append(loss_on(model, held_out) if held_out else math.nan)
        if after:
            after(epoch + 1)
    return losses, held_losses


training, unseen = samples(1_000, seed=0), samples(100, seed=1)
check("loss of answering zero", unseen[1].square().mean().item(), 0.82, within=0.005)

# %% [markdown]
# Zero is the answer of a block that has learned nothing: its loss is the mean square of y, 0.9² + 0.1² = 0.82. The
# noise cannot be foreseen, so nothing can get below 0.1² = 0.01.
#
# ## 2. As first written, the task cannot be learned
#
# Train the block without positions, with AdamW at 0.001 and batches of 64. We watch two losses: on the samples it
# trains on, and on samples that it never sees.

# %%
torch.manual_seed(0)
blind = Block(positions=False, skip=True)
epochs = 3 if QUICK else 20
blind_losses, blind_held = train(blind, lambda _: training, epochs=epochs, rate=1e-3, held_out=unseen)

figure = style.new_figure(height_inches=4)
axes = figure.subplots()
steps = range(1, epochs + 1)
axes.plot(steps, blind_losses, color=style.COLORS[0], linewidth=2, label="samples it trains on")
axes.plot(steps, blind_held, color=style.COLORS[1], linewidth=2, label="samples it never saw")
axes.axhline(0.82, color=style.SOFT, linewidth=1, linestyle=(0, (4, 3)), label="answering zero, 0.82")
axes.set_ylim(0.6, 1.2)
axes.set_xticks([1, *range(5, epochs + 1, 5)])
axes.legend(frameon=False)
style.dress(axes, x="epoch", y="loss")
style.headline(
    figure, "It gets to answering zero, then learns samples by heart", "block without positions, full training"
)
show(figure, "Training loss falls slowly below 0.82 while the loss on unseen samples rises away from it")

print(f"training loss {blind_losses[-1]:.3f}, on unseen samples {blind_held[-1]:.3f}")
check("lowest loss of the blind block on unseen samples", min(blind_held), 0.85, within=0.4 if QUICK else 0.05)

# %% [markdown]
# The training loss creeps below 0.82. Is this learning? The other curve says no: on new samples the block is *worse*
# than answering zero. It has started to learn its 1,000 samples by heart. Always look at data that was not trained
# on.
#
# ## 3. Why: nothing distinguishes positions
#
# Attention compares tokens with tokens. Shuffle the sequence, and the same tokens meet the same tokens: the outputs
# are shuffled in the same way, and nothing else changes. But "my left neighbour" *does* change. A block that cannot
# know its place cannot do this task, however long it trains.

# %%
order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(2))
with torch.no_grad():
    difference = blind(unseen[0][:, order]) - blind(unseen[0])[:, order]
check("largest change of the outputs when the input is shuffled", difference.abs().max().item(), 0, within=1e-5)

# %% [markdown]
# What is the best that it could do? The neighbour is one of 31 others, each as likely, so the best answer is 0.9
# times their mean. This saves 0.81/31 = 0.026, no more: the floor for any block without positions is 0.794.

# %%
x, y = unseen
others = (x.sum(1, keepdim=True) - x) / (LENGTH - 1)
check("loss of answering the mean of the others", F.mse_loss(0.9 * others, y).item(), 0.794, within=0.005)
check("the same by the formula", 0.82 - 0.81 / 31, 0.7939, within=0.0001)

# %% [markdown]
# ## 4. Positions, and it learns
#
# Add a pattern of sines to what attention compares, a different one at each place, and the task becomes possible. Two
# more changes help it learn in seconds. It sees fresh samples in every epoch, so there is nothing to learn by heart.
# And we take the skip out: with it, each place starts out with its own token, which this task has to get rid of.

# %%
torch.manual_seed(0)
random_block = Block(positions=True, skip=False)
trained_block = Block(positions=True, skip=False)
trained_block.load_state_dict(random_block.state_dict())  # both start from the same random weights
epochs = 5 if QUICK else 8
full_losses, full_held = train(
    trained_block, lambda epoch: samples(1_000, seed=100 + epoch), epochs=epochs, rate=6e-3, batch=32, held_out=unseen
)
print("loss on unseen samples, epoch by epoch:", [round(loss, 3) for loss in full_held])
check("loss after full training with positions", full_held[-1], 0.035, within=0.08 if QUICK else 0.01)

# %% [markdown]
# From 0.82 to a few hundredths. What did it learn? Look where attention looks: nearly all of it goes to the left
# neighbour.


# %%
@torch.no_grad()
def attention_of(block):
    h = block.norm1(unseen[0]) + block.where
    q, k = (block.heads(part(h)) for part in (block.q_proj, block.k_proj))
    return (q @ k.mT / math.sqrt(WIDTH // HEADS)).softmax(-1).mean((0, 1))


attention = attention_of(trained_block)
figure = style.new_figure(height_inches=4.4)
panels = figure.subplots(1, 2)
pictures = {"before training": attention_of(random_block), "after training": attention}
for axes, (name, shares) in zip(panels, pictures.items(), strict=True):
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_title(name, loc="left", fontsize=10)
    axes.set_xlabel("looked at")
    axes.set_ylabel("place")
figure.colorbar(image, ax=panels, label="share of the attention")
style.headline(figure, "Each place looks at the one before it", "mean over heads and samples")
show(figure, "Before training an even field; after it one line just below the diagonal, and a dot where the roll wraps")
to_neighbour = attention[torch.arange(LENGTH), (torch.arange(LENGTH) - 1) % LENGTH].mean().item()
check("share of the attention that goes to the left neighbour", to_neighbour, 0.95, within=0.15 if QUICK else 0.05)

# %% [markdown]
# ## 5. Adapters on the random block: rank is the limit
#
# Now freeze the *random* block and train adapters of rank 16 on q, k, v and o instead. The task is the same, the
# positions are there. It should work, should it not?

# %%
FOUR = ("q_proj", "k_proj", "v_proj", "o_proj")
eckart.inject(random_block, eckart.LoRAConfig(rank=16, alpha=32, target=FOUR))
epochs, count = (3, 400) if QUICK else (8, 1_000)
train(random_block, lambda e: samples(count, 100 + e), epochs=epochs, rate=1e-2, batch=32)
check("loss of rank 16 on the random block", loss_on(random_block, unseen), 0.82, within=0.03)
eckart.eject(random_block)

# %% [markdown]
# It gets to answering zero, and there it stays. One part of this is that everything has to be found at once: where to
# look, and what to hand on. To see the part of the rank alone, we help. Take the trained block, which knows where to
# look, and redraw only v and o. Whatever it should hand on has 256 directions, and a random v and o carry all of them
# wrongly. Adapters of rank r on v and on o put right at most 2r directions. Each is worth 0.81/256, so expect about
# 0.82 − 0.81·2r/256.

# %%
half_random = Block(positions=True, skip=False)
half_random.load_state_dict(trained_block.state_dict())
torch.manual_seed(1)
half_random.v_proj.reset_parameters()
half_random.o_proj.reset_parameters()

limited = {}
for rank in (16, 128) if QUICK else (4, 16, 32, 64, 128):
    eckart.inject(half_random, eckart.LoRAConfig(rank=rank, alpha=2 * rank, target=("v_proj", "o_proj")))
    rate = 1e-2 if rank <= 16 else 5e-3
    train(half_random, lambda e: samples(200, 100 + e), epochs=12, rate=rate, batch=20)
    limited[rank] = loss_on(half_random, unseen)
    eckart.eject(half_random)
    print(f"rank {rank:3}: loss {limited[rank]:.3f}, expected about {0.82 - 0.81 * 2 * rank / WIDTH:.3f}")
check("loss at rank 16 on v and o", limited[16], 0.72, within=0.05)
check("loss at rank 128 on v and o", limited[128], 0.15, within=0.15)

# %% [markdown]
# The line is right in the middle. At rank 4 the remaining random values still do harm, and at rank 128 the training
# ends before it is done. But nothing short of full rank comes near the trained block.
#
# And the update that is needed? The trained weights less the redrawn ones: its spectrum falls slowly, to the very
# end.

# %%
pairs = {name: (trained_block.get_submodule(name), half_random.get_submodule(name)) for name in ("v_proj", "o_proj")}
needed = {name: eckart.spectrum((good.weight - bad.weight).detach()) for name, (good, bad) in pairs.items()}
rows = [(name, f"{s.stable_rank:.0f}", s.rank_for_energy(0.9), s.rank_for_error(0.1)) for name, s in needed.items()]
table(("matrix", "stable rank", "rank for 90 % of energy", "rank for error < 10 %"), rows, "The update that is needed")

figure = style.new_figure(height_inches=4.2)
left, right = figure.subplots(1, 2)
line = {rank: 0.82 - 0.81 * 2 * rank / WIDTH for rank in range(1, 129)}
left.plot(line.keys(), line.values(), color=style.SOFT, linestyle=(0, (4, 3)), label="0.82 − 0.81·2r/256")
left.plot(limited.keys(), limited.values(), "o-", color=style.COLORS[0], label="adapters on v and o")
left.axhline(full_held[-1], color=style.COLORS[2], label="the trained block")
left.legend(frameon=False, fontsize=9)
style.dress(left, x="rank r", y="loss on unseen samples", title="what adapters reach where v and o are random")
for place, (name, spectrum) in enumerate(needed.items()):
    right.plot(spectrum.singular_values.numpy(), label=name, **style.line_style(place))
right.legend(frameon=False, fontsize=9)
right.set_ylim(bottom=0)
style.dress(right, x="index i", y="singular value σᵢ", title="the update that is needed")
style.headline(figure, "The task needs an update of full rank", "so adapters learn as far as their rank reaches")
show(figure, "Loss falls with rank along the expected line; the spectra of the update fall slowly over all 256 values")
check("rank for 90 % of the update of o_proj", needed["o_proj"].rank_for_energy(0.9), 150, within=50)

# %% [markdown]
# This is no fault of LoRA. It was made for a model that already *can* do most of the task.
#
# ## 6. The case LoRA is for
#
# Take the block that learned the task, and change the task a little: 16 of the 256 directions of every answer come
# out differently. The new answers come from a copy of the block whose output matrix was changed by an update of
# rank 16, 4·U·Vᵀ·W, plus noise as before. So for once we know exactly which update must be found.

# %%
TRUE_RANK = 16
generator = torch.Generator().manual_seed(7)
U, V = (torch.linalg.qr(torch.randn(WIDTH, TRUE_RANK, generator=generator)).Q for _ in range(2))
W = trained_block.o_proj.weight.detach()
true_update = eckart.LowRank(4 * U, V.T @ W)
teacher = Block(positions=True, skip=False)
teacher.load_state_dict(trained_block.state_dict())
with torch.no_grad():
    teacher.o_proj.weight += true_update.dense()


@torch.no_grad()
def changed(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, count, LENGTH, WIDTH, generator=generator)
    return x, teacher(x) + 0.1 * noise


few, judge = changed(100, seed=3), changed(20, seed=4)
start = loss_on(trained_block, judge)
check("numerical rank of the update to be found", true_update.spectrum().numerical_rank, TRUE_RANK)
check("loss of the trained block on the changed task", start, 0.8, within=0.3 if QUICK else 0.15)
check("loss of the teacher itself, all noise", loss_on(teacher, judge), 0.01, within=0.0001)

# %% [markdown]
# We give the adapter only 100 samples, and twice the rank it needs, 32, on the output matrix alone. After every epoch
# we write down the sizes of A, B and of the update ΔW = (α/r)·B·A, and its singular values: by hand, and with
# eckart's recorder, which never forms ΔW.

# %%
RATE, BATCH = 1e-2, 10
EPOCHS, LAST = (15, 3) if QUICK else (20, 10)
eckart.inject(trained_block, eckart.LoRAConfig(rank=32, alpha=64, target="o_proj"))
recorder = DynamicsRecorder(trained_block, title="the changed task", directions=0)
by_hand = []


@torch.no_grad()
def look(epoch):
    recorder.record(trained_block, epoch)
    factors = trained_block.o_proj.factors("default")
    A, B = factors.lora_A.clone(), factors.lora_B.clone()
    update = (64 / 32) * B @ A
    by_hand.append((A.norm().item(), B.norm().item(), update.norm().item(), torch.linalg.svdvals(update), update))


look(0)
losses, held_losses = train(
    trained_block, lambda _: few, epochs=EPOCHS, rate=RATE, batch=BATCH, held_out=judge, after=look
)
layer = recorder.dynamics.layers[0]
A_norms, B_norms, norms, spectra, updates = zip(*by_hand, strict=True)

check("‖B‖ before the first step", B_norms[0], 0)
check("‖ΔW‖ before the first step", norms[0], 0)
for name, ours, theirs in (("A", A_norms, layer.A_norm), ("B", B_norms, layer.B_norm), ("ΔW", norms, layer.norm)):
    worst = max(abs(a - b) / max(b, 1e-9) for a, b in zip(ours, theirs, strict=True))
    check(f"largest relative difference of ‖{name}‖ between ours and eckart's", worst, 0, within=1e-4)
gap = max(abs(spectra[-1][i].item() - value) for i, value in enumerate(layer.singular_values[-1][:16]))
check("largest difference of a singular value, relative to σ₁", gap / spectra[-1][0].item(), 0, within=1e-4)

# %%
figure = style.new_figure(height_inches=4.2)
left, middle, right = figure.subplots(1, 3)
epochs = range(EPOCHS + 1)
left.semilogy(epochs, [start, *held_losses], color=style.COLORS[1], linewidth=2, label="unseen samples")
left.axhline(0.01, color=style.SOFT, linestyle=(0, (4, 3)), label="the noise")
left.legend(frameon=False, fontsize=9)
style.dress(left, x="epoch", y="loss", title="loss")
for place, (name, values) in enumerate({"‖A‖": A_norms, "‖B‖": B_norms, "‖ΔW‖": norms}.items()):
    middle.plot(epochs, values, linewidth=2, label=name, **style.line_style(place))
middle.axhline(true_update.fro_norm, color=style.SOFT, linestyle=(0, (4, 3)), label="‖ΔW‖ to be found")
middle.legend(frameon=False, fontsize=9, loc=(0.35, 0.55))
style.dress(middle, x="epoch", y="Frobenius norm", title="sizes")
for i in range(32):
    colour = style.COLORS[0] if i < TRUE_RANK else style.COLORS[1]
    right.plot(
        epochs, [values[i] for values in spectra], color=colour, linewidth=1, label={0: "1–16", 16: "17–32"}.get(i)
    )
right.legend(frameon=False, fontsize=9, title="singular values")
style.dress(right, x="epoch", y="σᵢ of ΔW", title="spectrum")
style.headline(
    figure, "B grows from zero, and 16 directions rise out of 32", "an adapter of rank 32; the task needs 16"
)
show(
    figure,
    "Loss falls to the noise, the norm of B rises from zero, sixteen singular values rise and sixteen stay near zero",
)

check("loss of the adapter of rank 32", held_losses[-1], 0.0105, within=0.001)
check("σ₁₇ / σ₁₆ of what it learned", (spectra[-1][16] / spectra[-1][15]).item(), 0.05, within=0.05)

# %% [markdown]
# The adapter did not know the rank. It had 32 directions and used 16. Is it the *right* update? Put both side by
# side, and move the slider to see it grow.

# %%
learned = eckart.adapter_of(trained_block)["o_proj"].low_rank()
cosine = learned.inner(true_update) / (learned.fro_norm * true_update.fro_norm)
check("cosine between the update found and the true one", cosine, 1, within=0.02)
check("their relative difference", (learned - true_update).fro_norm / true_update.fro_norm, 0.08, within=0.08)

picture(
    "update_grows",
    {
        "side": 64,
        "truth": packed(true_update.dense()[:64, :64]),
        "updates": [packed(update[:64, :64]) for update in updates],
        "spectra": [values[:32].tolist() for values in spectra],
        "wanted": true_update.spectrum().singular_values[:32].tolist(),
        "losses": [start, *held_losses],
    },
    alt="The update after each epoch next to the one to be found, with its singular values; a slider for the epoch",
)
eckart.eject(trained_block)

# %% [markdown]
# ## 7. Which rank? Try them all, more than once
#
# Now the same at ranks 4 to 128, with α = 2r, three times each with other random starts and another order of the
# samples. One run says nothing about luck; three show the spread. The final loss is the mean of the last ten epochs.

# %%
SEEDS = (0, 1) if QUICK else (0, 1, 2)


def final_losses(rank, target, seeds=SEEDS):
    """Trained parameters, and the final loss by seed, of adapters of the trained block on the changed task."""
    losses, params = {}, 0
    for seed in seeds:
        config = eckart.LoRAConfig(rank=rank, alpha=2 * rank, target=target)
        params = eckart.inject(trained_block, config, seed=seed).trainable_params
        _, held_losses = train(
            trained_block, lambda _: few, epochs=EPOCHS, rate=RATE, batch=BATCH, seed=seed, held_out=judge
        )
        losses[seed] = fmean(held_losses[-LAST:])
        eckart.eject(trained_block)
    return params, losses


settings = []
for rank in (8, 16, 32) if QUICK else (4, 8, 16, 32, 64, 128):
    params, losses = final_losses(rank, "o_proj")
    settings.append(Setting(rank, "o_proj", params, losses))
spot = find_sweet_spot(settings)

rows = [
    (s.rank, f"{s.params:,}", f"{s.mean:.6f} ± {stdev(s.losses.values()):.6f}", f"{s.mean / s.params * 1e3:.6f}",
     f"{(start - s.mean) / s.params * 1e3:.4f}", "sweet spot" if s is spot.setting else "")
    for s in settings
]  # fmt: skip
columns = ("rank", "parameters", "final loss ± spread", "loss per 1,000", "loss removed per 1,000", "")
table(columns, rows, f"Adapters on o_proj, {len(SEEDS)} seeds each")
by_rank = {s.rank: s for s in settings}
check("parameters at rank 16", by_rank[16].params, 8_192)
check("loss at rank 8", by_rank[8].mean, 0.01 + start / 2, within=0.08)
check("loss at rank 16", by_rank[16].mean, 0.0105, within=0.002)
check("sweet spot", spot.setting.rank, 16)

# %% [markdown]
# Below rank 16 each missing direction costs about a sixteenth of the loss. At 16 the task is learned; above it there
# is nothing to win, and a little to lose: more factors learn more of the noise. The sweet spot is the smallest
# setting whose loss is within one run's scatter of the best.
#
# Beware of "loss per 1,000 parameters": it falls for ever, because it divides by a number that doubles. By it the
# largest adapter always wins, though it learned nothing more. What an adapter *removes* per 1,000 parameters is the
# better question: that stays nearly level up to rank 16 and then halves with every doubling.

# %%
figure = style.new_figure(height_inches=4.4)
axes = figure.subplots()
tried = [s.rank for s in settings]
axes.errorbar(
    tried,
    [s.mean for s in settings],
    [stdev(s.losses.values()) for s in settings],
    marker="o",
    capsize=3,
    color=style.COLORS[0],
)
line = [0.01 + (start - 0.01) * max(0, 1 - rank / TRUE_RANK) for rank in range(1, 129)]
axes.plot(range(1, 129), line, color=style.SOFT, linestyle=(0, (4, 3)), label="a sixteenth for each direction")
axes.plot(
    spot.setting.rank,
    spot.setting.mean,
    "o",
    markersize=16,
    markerfacecolor="none",
    color=style.INK,
    label="sweet spot",
)
style.rank_axis(axes, 128, spacing="doubling")
axes.legend(frameon=False)
style.dress(axes, x="rank", y="final loss on unseen samples")
style.headline(
    figure, "Learned at rank 16, and not below it", f"mean of {len(SEEDS)} seeds, bars: standard deviation between them"
)
show(figure, "Final loss over rank: falling along the dashed line to rank 16, flat from there on")

# %% [markdown]
# ## 8. Which matrices?
#
# The change sits in one matrix, but nobody knows that in real life. So try the usual targets at rank 16: q and v;
# all of attention; attention and the two-layer network.

# %%
targets = {
    "q, v": ("q_proj", "v_proj"),
    "q, k, v, o": "attention",
    "attention and MLP": ("attention", "up_proj", "down_proj"),
}
rows, results = [("o", f"{by_rank[16].params:,}", f"{by_rank[16].mean:.4f}")], {}
for name, target in targets.items():
    params, losses = final_losses(TRUE_RANK, target)
    results[name] = fmean(losses.values())
    rows.append((name, f"{params:,}", f"{results[name]:.4f} ± {stdev(losses.values()):.4f}"))
table(("targets", "parameters", "final loss"), rows, "Rank 16 on other targets")
check("loss with q and v", results["q, v"], 0.03, within=0.03)
check("loss with q, k, v and o", results["q, k, v, o"], 0.013, within=0.01 if QUICK else 0.004)
check("loss with attention and MLP", results["attention and MLP"], 0.013, within=0.01 if QUICK else 0.004)

# %% [markdown]
# More targets cost parameters and bring nothing here: the change is in o, and the rest only has more to get right.
# But q and v do rather well without touching o! Values pass through both v and o, so what o should change, v can
# change before it. In a real model nobody knows where the change sits, and there more targets mostly help.
#
# ### Exercise
#
# Adapters of rank 8 on o alone miss half of the task. What about rank 8 on v *and* on o? Predict first.

# %% tags=["solution"]
# The two act one after the other: (W_o + B_o·A_o)·(W_v + B_v·A_v). Together they can change 8 + 8 = 16 directions, so
# the task fits. It takes longer to learn than one adapter of rank 16, because each half depends on the other.
params, losses = final_losses(8, ("v_proj", "o_proj"), seeds=(0,))
check("parameters of rank 8 on v and o", params, 8_192)
print(f"loss {fmean(losses.values()):.4f}, with rank 8 on o alone {by_rank[8].mean:.4f}")
check("rank 8 on v and o learns most of it (1: yes)", int(fmean(losses.values()) < by_rank[8].mean / 3), 1)

# %% [markdown]
# ### Exercise
#
# What does rank 12 on o reach? Write your number down before you run the answer.

# %% tags=["solution"]
# 4 of 16 directions are missing, each worth about a sixteenth of the loss without noise. It comes out a little lower:
# not all directions weigh the same, and the adapter takes the heaviest first.
predicted = 0.01 + (start - 0.01) * 4 / 16
params, losses = final_losses(12, "o_proj", seeds=(0,))
check("loss at rank 12 less the prediction", fmean(losses.values()) - predicted, 0, within=0.06)
