"""TRL's SFTTrainer for eckart's adapters: its loss, its checkpoints and its checks.

Imported when training begins, since it imports the trainers of transformers and TRL.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl.trainer.sft_trainer import SFTTrainer

from eckart.engine.progress import NoProgress, Progress
from eckart.errors import FileFormatError, MismatchError, OptionError
from eckart.nn import adapted_modules, save_adapter
from eckart.nn.head_loss import head_loss
from eckart.training.best_weights import BestWeights
from eckart.training.examples import IGNORED
from eckart.training.health import DivergenceError, first_bad_module
from eckart.training.loss_path import LOSS_PATHS, LossPath, loss_path

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from eckart.training.dynamics import DynamicsRecorder

WEIGHTS_FILE = "trained.safetensors"
ADAPTER_FOLDER = "adapter"  # in a checkpoint: the adapter of that step in PEFT's format
TOLERANCE, TOLERANCE_HALF = 1e-4, 2e-2  # nats per token, between two loss paths, in float32 and bfloat16


class AdapterTrainer(SFTTrainer):
    """Trains the parameters that require a gradient, and saves only these.

    Attributes:
        live: the model, without DDP around it.
        best: the weights with the lowest held-out loss so far, if they are kept.
        loss_path: how the loss is computed.
        is_sharded: whether the base is, so that all processes must run it equally often.
    """

    def __init__(
        self, *, held_out: "Dataset", lora_plus_ratio: float, is_sharded: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.live = cast("PreTrainedModel", self.model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            msg = (
                "several processes each have all factors of an adapter, with a complete base or one that FSDP shards; "
            )
            msg += "DeepSpeed is not supported"
            raise OptionError(msg)
        self.collate = cast("Callable[[list[Any]], dict[str, Any]]", self.data_collator)
        self.held_out, self.is_sharded = held_out, is_sharded
        self.lora_plus_ratio = lora_plus_ratio
        self.recorder: DynamicsRecorder | None = None
        self.best: BestWeights | None = None
        # TRL would derive both from the model's own loss, which is not used here: the loss is the sum over all tokens
        # of a step, of all processes, divided by their number.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True
        self._bad_inputs: dict[str, Any] | None = None
        self._add_summed_loss()
        with _evaluation_mode(self.live):  # dropout would make two computations of one loss differ
            self.loss_path: LossPath = self._checked_loss_path()
            if self.padding_free:
                self._require_separate_records()

    # ---- what TRL would do unasked

    def _send_telemetry(self) -> None:
        """Sends nothing."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes no README."""

    # ---- the loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Summed loss of the target tokens, divided by their number in the complete step."""
        if self.loss_path == "fused":
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            summed, count = self._summed_loss(model, inputs, self.loss_path)
            # DDP averages gradients over processes, but the number counts the tokens of all of them.
            share = self.accelerator.num_processes if num_items_in_batch is not None else 1
            loss = summed * share / (count if num_items_in_batch is None else num_items_in_batch)
        if not math.isfinite(loss.item()):
            self._bad_inputs = inputs
        return loss

    @staticmethod
    def _summed_loss(model: nn.Module, inputs: Mapping[str, Any], path: LossPath) -> tuple[Tensor, Tensor]:
        """Summed loss of the target tokens, and their number."""
        labels = inputs["labels"]
        count = (labels[:, 1:] != IGNORED).sum()
        rest = {name: value for name, value in inputs.items() if name not in ("labels", "use_cache")}
        if path == "pieces":
            return model(**rest, summed_over=labels), count
        if path == "fused":
            return -model(**inputs, fused_lm_head=True).log_probs.double().sum(), count
        logits = model(**rest, use_cache=False).logits[:, :-1]
        targets = labels[:, 1:].flatten()
        summed = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum"
        )
        return summed, count

    def _add_summed_loss(self) -> None:
        """Let the model return a summed loss when it is called with labels to sum over.

        It must be the model's own call, so that DDP around the model sees it. `restored` removes this again.
        """
        forward, live = self.live.forward, self.live

        def forward_or_sum(*args: Any, summed_over: Tensor | None = None, **options: Any) -> Any:
            if summed_over is None:
                return forward(*args, **options)
            hidden = live.base_model(*args, **options, use_cache=False).last_hidden_state
            head = cast("nn.Linear", live.get_output_embeddings())
            return head_loss(hidden, head.weight, summed_over, bias=head.bias, count=1.0)

        live.forward = forward_or_sum  # type: ignore[method-assign]

    @torch.no_grad()
    def heldout_loss(self, progress: Progress = NoProgress(), stage: str = "Held-out loss") -> tuple[float, int]:
        """Mean loss of the held-out tokens, each counted once, and their number, over all processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        loader = torch.utils.data.DataLoader(
            self.held_out.select(range(rank, len(self.held_out), world)),  # type: ignore[arg-type]
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.collate,
            generator=torch.Generator(),  # a loader without one draws from that of dropout
        )
        total, tokens = 0.0, 0
        progress.start(stage, len(loader.dataset), "windows")  # type: ignore[arg-type]
        try:
            with _evaluation_mode(self.live):
                for batch in loader:
                    inputs = self._prepare_inputs(batch)
                    summed, count = self._summed_loss(self.live, inputs, self.loss_path)
                    total += summed.item()
                    tokens += int(count)
                    progress.update(len(batch["labels"]))
                if self.is_sharded:
                    self._run_as_often_as_the_first(len(loader))
            total, tokens = self.summed([total, tokens])
            progress.update(0, f"{total / tokens:.4f} nats per token")
        finally:
            progress.finish()
        return total / tokens, int(tokens)

    def _run_as_often_as_the_first(self, batches: int) -> None:
        """Take part in the batches that the first process has on top, without counting them."""
        first = -(-len(self.held_out) // self.accelerator.num_processes)
        inputs = self._prepare_inputs(self.collate([self.held_out[0]]))
        for _ in range(-(-first // self.args.per_device_train_batch_size) - batches):
            self._summed_loss(self.live, inputs, self.loss_path)

    def log_heldout_loss(self, loss: float) -> None:
        """Log a held-out loss under transformers' name for it; TRL would add what it averages over training steps."""
        due = self.control.should_log
        Trainer.log(self, {"eval_loss": loss})
        self.control.should_log = due  # of the step itself: logging resets it

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
        dtype = cast("nn.Linear", self.live.get_output_embeddings()).weight.dtype
        tolerance = TOLERANCE if dtype == torch.float32 else TOLERANCE_HALF
        for path in LOSS_PATHS[LOSS_PATHS.index(planned) : -1]:
            summed, _ = self._summed_loss(self.live, inputs, path)
            if (summed - expected).abs() / tokens <= tolerance:
                return path
        return "logits"

    @torch.no_grad()
    def _require_separate_records(self) -> None:
        """Refuse a model in which packed records attend to each other: one must not change a bit of another."""
        second = self.held_out[0]["input_ids"][:16]
        outputs = []
        for first in (second, second[::-1], [second[0]] * len(second)):
            row = {"input_ids": [*first, *second], "seq_lengths": [len(first), len(second)]}
            inputs = self._prepare_inputs(self.collate([row]))
            inputs.pop("labels")
            outputs.append(self.live(**inputs, use_cache=False).logits[:, len(first) :])
        if not all(torch.equal(outputs[0], other) for other in outputs[1:]):
            msg = "in this model, records packed into one sequence attend to each other; train without `packing`"
            raise OptionError(msg)

    # ---- the step

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, with a separate learning rate for lora_B; biases and magnitudes do not decay."""
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
        """Clip the gradients, unless the loss or one of them is not finite, which clipping would spread to all."""
        gradients = {name: p.grad for name, p in self.live.named_parameters() if p.grad is not None}
        norms = torch.stack([gradient.norm() for gradient in gradients.values()])
        bad = [name for name, fine in zip(gradients, norms.isfinite().tolist(), strict=True) if not fine]
        if self.summed([bool(bad) or self._bad_inputs is not None])[0]:
            is_here = self._bad_inputs is not None and not self.is_sharded  # a pass of one process alone would wait
            where = first_bad_module(self.live, self._bad_inputs or {}) if is_here else None
            raise DivergenceError.at(
                self.state.global_step + 1, self.state.max_steps, where, bad, self.args.learning_rate
            )
        return super()._clip_grad_norm(model)

    def summed(self, values: list[float]) -> list[float]:
        """The sums of these numbers over all processes."""
        if self.accelerator.num_processes == 1:
            return values
        local = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        return cast("Tensor", self.accelerator.reduce(local, reduction="sum")).tolist()

    # ---- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the exact values of what trains, the adapter in PEFT's format, and the record so far."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.detach().contiguous() for name, t in self._trained().items()}, folder / WEIGHTS_FILE)
        save_adapter(self.live, folder / ADAPTER_FOLDER, force=True)
        if self.recorder is not None:
            self.recorder.save(folder, force=True)
        if self.best is not None:
            self.best.save(folder)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the values of a checkpoint into what trains.

        Raises:
            FileFormatError, MismatchError: the file is damaged, or belongs to another adapter.
        """
        file = Path(resume_from_checkpoint) / WEIGHTS_FILE
        try:
            stored = load_file(file)
        except Exception as error:
            msg = f"{file}: cannot be read ({error})"
            raise FileFormatError(msg) from error
        trained = self._trained()
        names = trained.keys() | stored.keys()
        differing = [n for n in names if n not in trained or n not in stored or trained[n].shape != stored[n].shape]
        if differing:
            msg = f"{file} belongs to another adapter"
            raise MismatchError.listing(msg, sorted(differing))
        for name, tensor in trained.items():
            tensor.copy_(stored[name])
        self.best = BestWeights.load(file.parent)

    def load_finished(self, checkpoint: Path) -> bool:
        """Load a checkpoint if it was written after the last step: resumed from it, transformers would add a step."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return True

    def keep_if_best(self, loss: float) -> None:
        """Keep a copy of what trains if no earlier held-out loss was as low."""
        if math.isfinite(loss) and (self.best is None or loss < self.best.loss):
            self.best = BestWeights.of(self.state.global_step, loss, self._trained())

    def restore_best(self, loss: float) -> tuple[int, float]:
        """Go back to the best weights if their held-out loss is below that of the present ones.

        Returns:
            The step and the held-out loss of the weights that the model then has.
        """
        if self.best is None or not self.best.loss < loss:
            return self.state.global_step, loss
        self.best.restore(self._trained())
        return self.best.step, self.best.loss

    def _trained(self) -> dict[str, Tensor]:
        """The tensors that training changes, and the frozen initial factors that are subtracted from the update."""
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
