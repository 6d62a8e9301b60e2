"""TRL's SFTTrainer for adapters of ours: what it saves, what it refuses, and what it must not do by itself.

Imported where training begins, since it brings transformers' and TRL's trainers.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from trl.trainer.sft_trainer import SFTTrainer

from eckart.errors import FileFormatError, MismatchError, OptionError
from eckart.nn import adapted_modules, save_adapter
from eckart.nn.head_loss import head_loss
from eckart.training.examples import IGNORED
from eckart.training.health import DivergenceError, first_bad_module
from eckart.training.loss_path import LOSS_PATHS, LossPath, loss_path

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from eckart.training.dynamics import DynamicsRecorder

WEIGHTS_FILE = "trained.safetensors"
ADAPTER_FOLDER = "adapter"  # in a checkpoint, for whoever wants the adapter of that step
TOLERANCE, TOLERANCE_HALF = 1e-4, 2e-2  # nats per token, between two loss paths, in float32 and bfloat16


class AdapterTrainer(SFTTrainer):
    """Trains the parameters that require a gradient, and saves only these.

    Attributes:
        live: the model, without DDP around it.
        loss_path: how the loss is computed.
    """

    def __init__(self, *, held_out: "Dataset", lora_plus_ratio: float, **options: Any) -> None:
        super().__init__(**options)
        self.live = cast("PreTrainedModel", self.model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            msg = "adapters train in one process, or in several that each hold the model (torchrun); "
            msg += "FSDP and DeepSpeed take the factors apart"
            raise OptionError(msg)
        self.collate = cast("Callable[[list[Any]], dict[str, Any]]", self.data_collator)
        self.held_out = held_out
        self.lora_plus_ratio = lora_plus_ratio
        self.recorder: DynamicsRecorder | None = None
        # Both would be guessed from the model's own loss, which is not the one that counts here: the sum over all
        # tokens of a step, of every process, over their number.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True
        self._bad_inputs: dict[str, Any] | None = None
        self._sum_over_pieces()
        with _evaluation_mode(self.live):  # dropout would make two computations of one loss differ
            self.loss_path: LossPath = self._checked_loss_path()
            if self.padding_free:
                self._require_separate_records()

    # ---- what must not happen by itself

    def _send_telemetry(self) -> None:
        """Tells nobody."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes no README into the run."""

    # ---- the loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Summed loss of the tokens to be learnt, over their number in the whole step."""
        if self.loss_path == "fused":
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            summed, learnt = self._summed_loss(model, inputs, self.loss_path)
            # DDP averages gradients over processes, and the number is of all of them.
            share = self.accelerator.num_processes if num_items_in_batch is not None else 1
            loss = summed * share / (learnt if num_items_in_batch is None else num_items_in_batch)
        if not math.isfinite(loss.item()):
            self._bad_inputs = inputs
        return loss

    @staticmethod
    def _summed_loss(model: nn.Module, inputs: Mapping[str, Any], path: LossPath) -> tuple[Tensor, Tensor]:
        """Summed loss of the tokens to be learnt, and their number."""
        labels = inputs["labels"]
        learnt = (labels[:, 1:] != IGNORED).sum()
        rest = {name: value for name, value in inputs.items() if name not in ("labels", "use_cache")}
        if path == "pieces":
            return model(**rest, summed_over=labels), learnt
        if path == "fused":
            return -model(**inputs, fused_lm_head=True).log_probs.double().sum(), learnt
        logits = model(**rest, use_cache=False).logits[:, :-1]
        targets = labels[:, 1:].flatten()
        summed = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum"
        )
        return summed, learnt

    def _sum_over_pieces(self) -> None:
        """Let the model, and DDP around it, answer with a summed loss where it is given labels to sum over."""
        forward, live = self.live.forward, self.live

        def summing(*args: Any, summed_over: Tensor | None = None, **options: Any) -> Any:
            if summed_over is None:
                return forward(*args, **options)
            hidden = live.base_model(*args, **options, use_cache=False).last_hidden_state
            head = cast("nn.Linear", live.get_output_embeddings())
            return head_loss(hidden, head.weight, summed_over, bias=head.bias, count=1.0)

        live.__dict__["forward"] = summing

    @torch.no_grad()
    def heldout_loss(self) -> tuple[float, int]:
        """Mean loss of the held-out tokens, each counted once, and their number, over all processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        loader = torch.utils.data.DataLoader(
            self.held_out.select(range(rank, len(self.held_out), world)),  # type: ignore[arg-type]
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.collate,
        )
        total, tokens = 0.0, 0
        with _evaluation_mode(self.live):
            for batch in loader:
                inputs = self._prepare_inputs(batch)
                summed, learnt = self._summed_loss(self.live, inputs, self.loss_path)
                total += summed.item()
                tokens += int(learnt)
        total, tokens = self.summed([total, tokens])
        return total / tokens, int(tokens)

    # ---- checks before the first step

    @torch.no_grad()
    def _checked_loss_path(self) -> LossPath:
        """The path that needs least memory, or the next one that gives the loss of the model's own logits."""
        planned = loss_path(self.live)
        if planned == "logits":
            return planned
        ids = torch.tensor([self.held_out[0]["input_ids"][:64]], device=self.args.device)
        inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
        expected, tokens = self._summed_loss(self.live, inputs, "logits")
        dtype = self.live.get_output_embeddings().weight.dtype
        tolerance = TOLERANCE if dtype == torch.float32 else TOLERANCE_HALF
        for path in LOSS_PATHS[LOSS_PATHS.index(planned) : -1]:
            summed, _ = self._summed_loss(self.live, inputs, path)
            if (summed - expected).abs() / tokens <= tolerance:
                return path
        return "logits"

    @torch.no_grad()
    def _require_separate_records(self) -> None:
        """Refuse a model in which packed records see each other: no bit of one may change with another."""
        second = self.held_out[0]["input_ids"][:16]
        outputs = []
        for first in (second, second[::-1], [second[0]] * len(second)):
            row = {"input_ids": [*first, *second], "seq_lengths": [len(first), len(second)]}
            inputs = self._prepare_inputs(self.collate([row]))
            inputs.pop("labels")
            outputs.append(self.live(**inputs, use_cache=False).logits[:, len(first) :])
        if not all(torch.equal(outputs[0], other) for other in outputs[1:]):
            msg = "this model lets records that are packed into one sequence see each other; train without packing"
            raise OptionError(msg)

    # ---- the step

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, with a rate of its own for lora_B; biases and magnitudes do not decay."""
        if self.optimizer is None:
            factors = [f for module in adapted_modules(self.live).values() for f in module.adapters.values()]
            B, A = ({id(getattr(each, name)) for each in factors} for name in ("lora_B", "lora_A"))
            trained = [parameter for parameter in self.live.parameters() if parameter.requires_grad]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.live)
            decay, rate = self.args.weight_decay, options["lr"]
            groups = [
                {"params": [p for p in trained if id(p) in A], "weight_decay": decay},
                {
                    "params": [p for p in trained if id(p) in B],
                    "weight_decay": decay,
                    "lr": rate * self.lora_plus_ratio,
                },
                {"params": [p for p in trained if id(p) not in A | B], "weight_decay": 0.0},
            ]
            self.optimizer = kind([group for group in groups if group["params"]], **options)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip, unless the loss or a gradient is not finite: clipping would spread that over all of them."""
        gradients = {name: p.grad for name, p in self.live.named_parameters() if p.grad is not None}
        norms = torch.stack([gradient.norm() for gradient in gradients.values()])
        bad = [name for name, fine in zip(gradients, norms.isfinite().tolist(), strict=True) if not fine]
        if self.summed([bool(bad) or self._bad_inputs is not None])[0]:
            where = first_bad_module(self.live, self._bad_inputs) if self._bad_inputs is not None else None
            raise DivergenceError.at(
                self.state.global_step + 1, self.state.max_steps, where, bad, self.args.learning_rate
            )
        return super()._clip_grad_norm(model)

    def summed(self, values: list[float]) -> list[float]:
        """The sums of these numbers over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        own = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        return cast("Tensor", self.accelerator.reduce(own, reduction="sum")).tolist()

    # ---- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """What trains, exactly; the adapter in PEFT's form; and the record of the run so far."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.detach().contiguous() for name, t in self._trained().items()}, folder / WEIGHTS_FILE)
        save_adapter(self.live, folder / ADAPTER_FOLDER, force=True)
        if self.recorder is not None:
            self.recorder.save(folder, force=True)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Give what trains the values of a checkpoint.

        Raises:
            FileFormatError, MismatchError: the file is damaged, or of another adapter.
        """
        file = Path(resume_from_checkpoint) / WEIGHTS_FILE
        try:
            stored = load_file(file)
        except Exception as error:
            msg = f"{file}: cannot be read ({error})"
            raise FileFormatError(msg) from error
        own = self._trained()
        differing = [
            n for n in own.keys() | stored.keys() if n not in own or n not in stored or own[n].shape != stored[n].shape
        ]
        if differing:
            msg = f"{file} is of another adapter:"
            raise MismatchError.listing(msg, sorted(differing))
        for name, tensor in own.items():
            tensor.copy_(stored[name])

    def _trained(self) -> dict[str, Tensor]:
        """What a training changes, and the frozen start that factors are held against."""
        trained = {name: p for name, p in self.live.named_parameters() if p.requires_grad}
        starts = {name: b for name, b in self.live.named_buffers() if name.endswith((".start_A", ".start_B"))}
        return {**trained, **starts}


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
