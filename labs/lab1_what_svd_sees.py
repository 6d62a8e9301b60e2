# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Lab 1: What SVD sees
#
# A weight matrix is a table of numbers, often a very large one. How much does it *really* contain? If most of its rows
# can be mixed from a few others, a few thin tables can do its work. The singular value decomposition, SVD, measures
# exactly this, and everything in these labs rests on it.
#
# You need to know how a matrix multiplies a vector, nothing more.

# %%
import eckart
import numpy as np
import torch
from eckart.report.figures import style
from matplotlib import cbook, image

from labkit import check, packed, picture, show, table

# %% [markdown]
# ## 1. Rank counts independent rows
#
# Below are three tables of nine numbers. In the first, no row can be mixed from the others. In the second, the last
# row is the sum of the first two. In the third, every row is a multiple of the first. The number of rows that are
# really needed is the **rank**: 3, 2 and 1.
#
# SVD gives a matrix as many *singular values* σ₁ ≥ σ₂ ≥ … as it has rows (or columns, if those are fewer). The rank
# is the number of them that are not zero.

# %%
examples = {
    "no row follows from others": np.array([[2.0, 0, 1], [1, 3, 0], [0, 1, 4]]),
    "last row = first + second": np.array([[1.0, 2, 3], [4, 5, 6], [5, 7, 9]]),
    "all rows multiples of one": np.array([[1.0, 2, 3], [2, 4, 6], [3, 6, 9]]),
}
rows = []
for name, W in examples.items():
    sigma = np.linalg.svd(W, compute_uv=False)
    rows.append((name, W.astype(int).tolist(), "  ".join(f"{s:.3f}" for s in sigma), np.linalg.matrix_rank(W)))
table(("matrix", "W", "singular values", "rank"), rows, "Three matrices of the same size")

for (name, W), rank in zip(examples.items(), (3, 2, 1), strict=True):
    check(f"rank where {name}", eckart.spectrum(W).numerical_rank, rank)

# %% [markdown]
# ## 2. A little noise breaks the count, not the values
#
# Add a thousandth of noise to the second matrix. Now no row is *exactly* a sum of others, and the rank jumps to 3.
# But the third singular value is tiny compared with the others: the matrix is still almost a matrix of rank 2. So do
# not ask "what is the rank?" of a trained weight. It is always full. Ask how fast the singular values fall.

# %%
rng = np.random.default_rng(0)
noisy = examples["last row = first + second"] + 0.001 * rng.standard_normal((3, 3))
spectrum = eckart.spectrum(noisy)
print("singular values:", spectrum.singular_values.numpy().round(5))
check("rank with a little noise", spectrum.numerical_rank, 3)
check("share of the energy in two singular values", float(spectrum.cumulative_energy()[1]), 1, within=1e-6)

# %% [markdown]
# Here *energy* means the sum of squares of all entries, ‖W‖². It equals the sum of the squared singular values, so we
# can ask which share of it the first few contain.
#
# ## 3. Two thin factors do the work of one matrix
#
# A 10×10 matrix of rank 2 is a product of a 10×2 and a 2×10 matrix. SVD finds such factors: it writes W = U·Σ·Vᵀ,
# where the columns of U and the rows of Vᵀ are orthogonal directions of length 1, and Σ is diagonal with the singular
# values. Keep the first two of each, give half of every singular value to either side, and you have B = U√Σ and A =
# √Σ·Vᵀ.

# %%
W = rng.standard_normal((10, 2)) @ rng.standard_normal((2, 10))
U, sigma, Vt = np.linalg.svd(W)
print("singular values:", np.array([f"{s:.1e}" for s in sigma]))

B = U[:, :2] * np.sqrt(sigma[:2])
A = np.sqrt(sigma[:2])[:, None] * Vt[:2]
check("numerical rank of the 10×10 matrix", np.linalg.matrix_rank(W), 2)
check("rows of B", B.shape[0], 10)
check("columns of B", B.shape[1], 2)
check("numbers in W", W.size, 100)
check("numbers in B and A", B.size + A.size, 40)
check("largest difference between B·A and W", np.abs(B @ A - W).max(), 0, within=1e-14)

# %%
figure = style.new_figure(height_inches=3.6)
panels = figure.subplots(1, 3, width_ratios=(10, 3, 10))
most = np.abs(W).max()
for axes, matrix, name in zip(panels, (W, B, A), ("W, 10×10", "B, 10×2", "A, 2×10"), strict=True):
    axes.imshow(matrix, cmap="RdBu", vmin=-most, vmax=most)
    axes.set_title(name, fontsize=10)
    axes.set_axis_off()
style.headline(figure, "40 numbers do the work of 100", "W = B · A: every row of W is a mixture of the two rows of A")
show(figure, "Heat maps of a 10 by 10 matrix and its factors, 10 by 2 and 2 by 10")

# %% [markdown]
# The library does the same in one call. Its factors may differ from ours in sign (a column of B and the row of A that
# belongs to it may both be turned), their product may not.

# %%
low_rank = eckart.factorize(W, rank=2)
print(f"lora_B {tuple(low_rank.lora_B.shape)}, lora_A {tuple(low_rank.lora_A.shape)}")
check("largest difference between eckart's product and ours", np.abs(low_rank.dense().numpy() - B @ A).max(), 0, 1e-14)

# %% [markdown]
# In a network the matrix acts on inputs: y = W·x + b. With factors, first A makes two numbers of the ten, then B
# makes ten of the two. In float32, as networks calculate, both give the same up to rounding, which is about 10⁻⁷ of
# the numbers involved.

# %%
W32, B32, A32 = (matrix.astype(np.float32) for matrix in (W, B, A))
x, b = rng.standard_normal((2, 10)).astype(np.float32)
y_dense, y_thin = W32 @ x + b, B32 @ (A32 @ x) + b
print("W·x + b    ", y_dense[:4])
print("B·(A·x) + b", y_thin[:4])
check("relative difference of the outputs", np.linalg.norm(y_dense - y_thin) / np.linalg.norm(y_dense), 0, within=5e-7)

# %% [markdown]
# What if we keep fewer than two, or more? `errors()` gives for every rank the distance of the best approximation from
# W, as a share of ‖W‖. We compute it by hand too.

# %%
errors = eckart.spectrum(W).errors().numpy()
rows = []
for rank in (1, 2, 3):
    by_hand = np.linalg.norm(W - (U[:, :rank] * sigma[:rank]) @ Vt[:rank]) / np.linalg.norm(W)
    check(f"difference of both errors at rank {rank}", abs(by_hand - errors[rank]), 0, within=1e-14)
    rows.append((rank, f"{by_hand:.2e}", f"{errors[rank]:.2e}", rank * 20))
table(("rank", "error by hand", "error by eckart", "numbers stored"), rows, "Relative error of the best approximation")
check("error of the 10×10 matrix at rank 1", errors[1], 0.2774, within=0.0001)

# %% [markdown]
# Rank 1 misses a quarter, rank 2 nothing but rounding, and rank 3 has nothing left to gain.
#
# ## 4. Why this matters for large matrices
#
# Fine-tuning changes a 10,000×10,000 weight by an update of the same size: 10⁸ numbers. If the update has rank 4, two
# factors store it in 80,000. The product need never be formed: to use it, multiply by A, then by B. Even its singular
# values follow from the thin factors alone, in a moment.

# %%
side, rank = 10_000, 4
update = eckart.LowRank(
    lora_B=torch.from_numpy(rng.standard_normal((side, rank))),
    lora_A=torch.from_numpy(rng.standard_normal((rank, side))),
)
check("numbers in the whole update", side * side, 100_000_000)
check("numbers in its two factors", update.lora_B.numel() + update.lora_A.numel(), 80_000)
check("rank of the update, which was never formed", update.spectrum().numerical_rank, 4)
print("its singular values:", update.spectrum().singular_values[:4].numpy().round())

# %% [markdown]
# ### Exercise
#
# Up to which rank do two factors of a 768×768 matrix contain fewer numbers than the matrix itself? And of a 4096×1024
# one?

# %% tags=["solution"]
# Factors of rank r contain r·(m + n) numbers; that is fewer while r < m·n / (m + n): for a square, half its side.
for m, n in ((768, 768), (4096, 1024)):
    print(f"{m}×{n}: factors are smaller below rank {m * n / (m + n):.1f}")
check("break-even rank of 768×768", 768 * 768 / (768 + 768), 384)
check("break-even rank of 4096×1024", 4096 * 1024 / (4096 + 1024), 819.2, within=1e-9)

# %% [markdown]
# ## 5. Rotate, stretch, rotate
#
# What are U, Σ and Vᵀ? Whatever a matrix does to the plane, it does it in three steps: **rotate** (Vᵀ), **stretch**
# along the axes (Σ), **rotate** again (U). The unit circle becomes an ellipse whose half-axes are the singular
# values. The two arrows are the directions v₁ (blue) and v₂ (orange): Vᵀ turns them onto the axes, Σ stretches them,
# U puts them where they end.
#
# Let us take one matrix apart. NumPy may give U and V as rotations *with a mirror image*; where both have one,
# turning the sign of their second columns takes it out and leaves the product as it is.

# %%
W = np.array([[1.5, 0.9], [0.2, 1.1]])
U, sigma, Vt = np.linalg.svd(W)
if np.linalg.det(U) < 0:
    U[:, 1], Vt[1] = -U[:, 1], -Vt[1]
angle_v = np.degrees(np.arctan2(Vt[0, 1], Vt[0, 0]))
angle_u = np.degrees(np.arctan2(U[1, 0], U[0, 0]))
print(f"V turns by {angle_v:.1f}°, stretches are {sigma[0]:.3f} and {sigma[1]:.3f}, U turns by {angle_u:.1f}°")
check("determinant of U, so no mirror image", np.linalg.det(U), 1, within=1e-12)
check("determinant of Vᵀ, so no mirror image", np.linalg.det(Vt), 1, within=1e-12)


# %%
def rotation(degrees):
    a = np.radians(degrees)
    return np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])


in_three_steps = rotation(angle_u) @ np.diag(sigma) @ rotation(angle_v).T
check("largest difference between U·Σ·Vᵀ from angles and W", np.abs(in_three_steps - W).max(), 0, within=1e-14)

circle = np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 721)), np.sin(a)])
lengths = np.linalg.norm(W @ circle, axis=0)
check("longest half-axis of the ellipse", lengths.max(), sigma[0], within=1e-4)
check("shortest half-axis of the ellipse", lengths.min(), sigma[1], within=1e-4)

# %% [markdown]
# Now move the sliders. Set σ₂ to 0: the plane collapses onto a line, and the rank is 1. Set both angles equal: W is
# symmetric. Set σ₁ = σ₂: only the difference of the two angles is left to see, for no direction is special. Press
# *Play* to watch the three steps.

# %%
letter = """
............
.#########..
.#########..
.##.........
.##.........
.######.....
.######.....
.##.........
.##.........
.#########..
.#########..
............
"""
patch = [[0.15 + 0.85 * (dot == "#") for dot in line] for line in letter.split()]
angles, stretches = {"v": angle_v.round(1), "u": angle_u.round(1)}, {"s1": sigma[0].round(2), "s2": sigma[1].round(2)}
picture(
    "rotate_stretch_rotate",
    {**angles, **stretches, "patch": patch},
    alt="The unit circle and a letter E, rotated, stretched and rotated; sliders for both angles and stretches",
)

# %% [markdown]
# ### Exercise
#
# Find the longest half-axis without SVD: start from any vector and multiply it again and again by WᵀW, dividing by
# its length each time. Why does this find v₁?

# %% tags=["solution"]
# In the directions vᵢ, WᵀW multiplies by σᵢ². After k rounds the part along v₂ has shrunk by (σ₂/σ₁)²ᵏ relative to that
# along v₁.
v = np.array([1.0, 0.0])
for _ in range(20):
    v = W.T @ (W @ v)
    v /= np.linalg.norm(v)
check("longest half-axis by power iteration", np.linalg.norm(W @ v), sigma[0], within=1e-12)

# %% [markdown]
# ## 6. Nothing of the same rank is nearer
#
# W is a sum of layers σᵢ·uᵢ·vᵢᵀ, each of rank 1, strongest first. Keep the first r of them. Eckart and Young proved
# in 1936 that no matrix of rank r is nearer to W, and that the squared error is the sum of the squares of the
# singular values left out.
#
# Try to beat it: keep the r longest columns, the r longest rows, or project onto r random directions.

# %%
W = rng.standard_normal((40, 40)) * np.geomspace(1, 0.01, 40)
U, sigma, Vt = np.linalg.svd(W)
r = 8
columns = np.argsort(np.linalg.norm(W, axis=0))[-r:]
rows_kept = np.argsort(np.linalg.norm(W, axis=1))[-r:]
basis = np.linalg.qr(rng.standard_normal((40, r))).Q
attempts = {
    "random directions": basis @ (basis.T @ W),
    "longest rows, zeros elsewhere": np.where(np.isin(np.arange(40), rows_kept)[:, None], W, 0),
    "longest columns, zeros elsewhere": np.where(np.isin(np.arange(40), columns), W, 0),
    "SVD": (U[:, :r] * sigma[:r]) @ Vt[:r],
}
errors = {name: np.linalg.norm(W - near) / np.linalg.norm(W) for name, near in attempts.items()}
table(("rank 8 by", "relative error"), [(name, f"{error:.1%}") for name, error in errors.items()])

tail = np.sqrt((sigma[r:] ** 2).sum() / (sigma**2).sum())
check("error of the SVD less the tail of the spectrum", errors["SVD"] - tail, 0, within=1e-14)
check("attempts that beat the SVD", sum(error < errors["SVD"] for error in errors.values()), 0)

# %% [markdown]
# ## 7. A smooth matrix
#
# Sample sin(x)·cos(y) + ½·exp(−(x² + y²)/5) on a grid of 64×64 points in [−3, 3]². How many layers does it take?

# %%
grid = np.linspace(-3, 3, 64)
X, Y = np.meshgrid(grid, grid)
smooth = np.sin(X) * np.cos(Y) + 0.5 * np.exp(-(X**2 + Y**2) / 5)
spectrum = eckart.spectrum(smooth)
energy = spectrum.cumulative_energy().numpy()
print("singular values:", [f"{s:.3g}" for s in spectrum.singular_values[:5]])
check("first singular value of the smooth matrix", float(spectrum.singular_values[0]), 32.79, within=0.005)
check("second singular value of the smooth matrix", float(spectrum.singular_values[1]), 12.71, within=0.005)
check("energy in one layer of the smooth matrix", energy[0], 0.8694, within=0.00005)
check("rank for 95 % of the energy of the smooth matrix", spectrum.rank_for_energy(0.95), 2)
check("rank for 99 % of the energy of the smooth matrix", spectrum.rank_for_energy(0.99), 2)
check("numerical rank of the smooth matrix", spectrum.numerical_rank, 2)

sigma = np.linalg.svd(smooth, compute_uv=False)
by_hand = np.cumsum(sigma**2) / np.sum(smooth**2)
check("largest difference of both cumulative energies", np.abs(by_hand - energy).max(), 0, within=1e-13)

# %% [markdown]
# Two! Look at the formula again: sin(x)·cos(y) is a function of x times a function of y, and such a product has rank
# one. So has the exponential, for exp(−(x² + y²)/5) = exp(−x²/5)·exp(−y²/5). A matrix that looks rich can be two
# layers. Everything after the second value, 10⁻¹⁵, is rounding.


# %%
def mark(line, level):
    """A thin dashed line across the axes: axhline or axvline."""
    line(level, color=style.SOFT, linewidth=0.8, linestyle=(0, (4, 3)))


figure = style.new_figure(height_inches=4.2)
left, right = figure.subplots(1, 2)
index = np.arange(1, 65)
left.semilogy(index, np.maximum(sigma, 1e-17), "o", markersize=3.5, color=style.COLORS[0])
mark(left.axhline, 1e-13)
left.annotate("below: rounding", (64, 2e-13), ha="right", color=style.SOFT, fontsize=8)
style.dress(left, x="index i", y="singular value σᵢ", title="singular values, logarithmic")
right.plot(index[:10], energy[:10], "o-", color=style.COLORS[1], markersize=4)
for level in (0.95, 0.99):
    mark(right.axhline, level)
    right.annotate(f"{level:.0%}", (10, level - 0.008), ha="right", color=style.SOFT, fontsize=8)
style.dress(right, x="rank r", y="share of the energy", title="cumulative energy, first ten ranks")
style.headline(figure, "Two layers are everything", "sin(x)·cos(y) + ½·exp(−(x² + y²)/5) on 64×64 points")
show(figure, "Singular values of the smooth matrix drop to rounding after the second; the energy is complete at rank 2")

# %% [markdown]
# Now rebuild it at each rank. To store the layers of rank r takes r·(m + n + 1) numbers: the columns of U, the rows
# of Vᵀ and the singular values. Beware: from rank 32 on that is *more* than the 4,096 numbers of the matrix itself.

# %%
U, sigma, Vt = np.linalg.svd(smooth)
ranks = (1, 2, 4, 8, 16, 32, 64)
rebuilt = {r: (U[:, :r] * sigma[:r]) @ Vt[:r] for r in ranks}
errors = {r: np.linalg.norm(smooth - rebuilt[r]) / np.linalg.norm(smooth) for r in ranks}
storage = {r: r * (64 + 64 + 1) for r in ranks}
rows = [(r, f"{errors[r]:.2e}", f"{storage[r]:,}", f"{storage[r] / smooth.size:.0%}") for r in ranks]
table(("rank", "relative error", "numbers stored", "of the matrix"), rows, "The smooth matrix, rebuilt")
check("error of the smooth matrix at rank 1", errors[1], 0.3613, within=0.0001)
check("error of the smooth matrix at rank 2", errors[2], 0, within=1e-14)
check("numbers stored at rank 2", storage[2], 258)
check("first rank that stores more than the matrix", next(r for r in range(1, 65) if r * 129 > 64 * 64), 32)

# %%
figure = style.new_figure(height_inches=2.3)
panels = figure.subplots(1, 8)
for axes, (name, matrix) in zip(panels, [("W", smooth), *((f"rank {r}", rebuilt[r]) for r in ranks)], strict=True):
    axes.imshow(matrix, cmap="viridis", vmin=smooth.min(), vmax=smooth.max())
    detail = "4,096 numbers" if name == "W" else f"{errors[int(name[5:])]:.0e} · {storage[int(name[5:])]:,}"
    axes.set_title(f"{name}\n{detail}", fontsize=8)
    axes.set_axis_off()
style.headline(
    figure, "From rank 2 on nothing changes any more", "each with its relative error and the numbers it stores"
)
show(figure, "The smooth matrix and its reconstructions at ranks 1 to 64; all from rank 2 on look like the original")

# %% [markdown]
# ## 8. A photograph
#
# A photograph is a matrix of grey values. It has no formula behind it: its singular values fall quickly at first,
# then slowly. The slider shows how many layers it takes before a face is a face. Compare it with the smooth matrix,
# which is done at 2, and with pure noise, which never gets better than its share.

# %%
pixels = image.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).mean(axis=2) / 255
photograph = pixels[:600, :510].reshape(120, 5, 102, 5).mean(axis=(1, 3))  # each side a fifth as long
noise = rng.standard_normal((64, 64))


def for_the_slider(name, matrix, start):
    U, sigma, Vt = np.linalg.svd(matrix, full_matrices=False)
    errors = eckart.spectrum(matrix).errors()
    factors = {"left": packed((U * sigma).T), "right": packed(Vt)}
    size = {"rows": matrix.shape[0], "columns": matrix.shape[1]}
    return {"name": name, "start": start, "values": sigma.tolist(), "errors": errors.tolist(), **size, **factors}


picture(
    "rank_slider",
    [
        for_the_slider("a photograph, 120×102", photograph, 8),
        for_the_slider("the smooth matrix, 64×64", smooth, 1),
        for_the_slider("noise, 64×64", noise, 8),
    ],
    alt="A matrix, its best approximation and what it lacks, with a slider for the rank",
)

# %%
spectrum = eckart.spectrum(photograph)
check("rank at which the photograph's error is below 10 %", spectrum.rank_for_error(0.1), 25)
check("rank at which the photograph's error is below 1 %", spectrum.rank_for_error(0.01), 74)
check("rank for 95 % of the photograph's energy", spectrum.rank_for_energy(0.95), 9)
check("error of the photograph at that rank", float(spectrum.errors()[9]), 0.2122, within=0.0001)

# %% [markdown]
# 95 % of the *energy* takes rank 9, an error of 10 % takes rank 25. The first sounds like nearly all, but energy is
# squared: what is left, 5 %, is an error of up to √0.05 = 22 %. Always ask which of the two somebody means.
#
# ## 9. A weight-like matrix
#
# Weights in a network are neither smooth nor small. Here is a model of one: 768×768, a signal of rank 64 and noise of
# 0.01 in every entry. The signal is A·B/64, whose entries are about ⅛ in size.

# %%
draw = np.random.RandomState(42).randn  # the same numbers as after np.random.seed(42)
A, B = draw(768, 64), draw(64, 768)
weight = A @ B / 64 + 0.01 * draw(768, 768)
spectrum = eckart.spectrum(weight)
sigma, errors = spectrum.singular_values.numpy(), spectrum.errors().numpy()
check("size of the signal's entries", (A @ B / 64).std(), 0.125, within=0.001)
check("singular value 64 of the weight-like matrix", sigma[63], 7.718, within=0.001)
check("singular value 65 of the weight-like matrix", sigma[64], 0.5341, within=0.0001)

ranks = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768)
rows = [(r, f"{errors[r]:.2%}", f"{r * (2 * 768 + 1):,}", f"{r * (2 * 768 + 1) / 768**2:.1%}") for r in ranks]
table(("rank", "relative error", "numbers stored", "of the matrix"), rows, "The weight-like matrix, 589,824 numbers")
check("error at rank 32", errors[32], 0.5785, within=0.0001)
check("error at rank 64", errors[64], 0.0729, within=0.0001)
check("error at rank 128", errors[128], 0.0615, within=0.0001)

# %%
figure = style.new_figure()
left, right = figure.subplots(1, 2)
left.semilogy(np.arange(1, 769), sigma, color=style.COLORS[0], linewidth=1.8)
style.dress(left, x="index i", y="singular value σᵢ", title="singular values, logarithmic")
right.semilogy(np.arange(1, 768), errors[1:768], color=style.COLORS[1], linewidth=1.8)
style.dress(right, x="rank r", y="relative error ‖W − Wᵣ‖ / ‖W‖", title="error, logarithmic")
right.set_ylim(1e-3, 1.2)
for axes in (left, right):
    mark(axes.axvline, 64)
    axes.annotate("true rank 64", (80, 0.93 * axes.get_ylim()[1]), va="top", color=style.SOFT, fontsize=9)
style.headline(figure, "The cliff at 64 is where the signal ends", "768×768, a signal of rank 64 and noise of 0.01")
show(
    figure,
    "Singular values fall off a cliff after the 64th, from 7.7 to 0.53; the error falls to 7 percent, then slowly",
)

# %% [markdown]
# After the 64th value the spectrum falls off a cliff, from 7.7 to 0.53. What follows is noise, and noise is stubborn:
# from rank 64 to rank 128 the stored numbers double, and the error falls from 7.3 % to 6.1 %. Which rank would *you*
# take? That is Lab 2.
#
# ### Exercise
#
# The noise is 0.01 in each entry, so its norm should be about 0.01·768 = 7.68. That is 8 % of the norm of the matrix,
# but the error at rank 64 is 7.3 %. Where is the rest of the noise?

# %% tags=["solution"]
# The first 64 layers carry some noise too. Noise has 768² degrees of freedom; the part of it in the 64 directions
# of the rows or of the columns goes with the signal. Left are (768 − 64)² of 768²; the root of that is 1 − 64/768.
share_of_noise = 0.01 * 768 / spectrum.fro_norm
check("share of the noise in the norm", share_of_noise, 0.08, within=0.001)
check("what is left of it at rank 64", share_of_noise * (1 - 64 / 768), errors[64], within=0.0005)

# %% [markdown]
# ## What you have seen
#
# - The rank counts independent rows; noise makes it full, singular values still show what matters.
# - Thin factors of rank r contain r·(m + n) numbers and do the work of m·n.
# - Every matrix rotates, stretches, and rotates again; the stretches are the singular values.
# - The first r layers of the SVD are the best that any matrix of rank r can do, and the error is the tail of the
#   spectrum.
# - Energy is squared: 95 % of the energy is an error of 22 %.
