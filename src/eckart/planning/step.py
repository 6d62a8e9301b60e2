"""One training step as `eckart train` runs it, on tensors with data or without."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from eckart.errors import MissingExtraError
from eckart.evaluation.model import EXTRA
from eckart.nn import LoRAConfig, adapted_modules, inject, quantize_model
from eckart.nn.head_loss import HeadLoss
from eckart.nn.sharding import shard_model
from eckart.planning.setting import PlanSetting
from eckart.training import TrainSettings
from eckart.training.loss_path import FUSED_TILE, LossPath, has_router_loss, logit_transform, loss_path

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

StepLoss = LossPath | Literal["own", "hidden"]


class TrainingStep:
    """A model that is ready to train, and its optimizer.

    Attributes:
        model: the model with its adapter.
        loss_path: `pieces`, `fused` and `logits` are those of `eckart train`; `own` is the loss that the model itself
            computes from labels, for full fine-tuning; `hidden` averages the outputs of a model without a head.
        body: path of the module before the head; "" is the entire model.
        trained: parameters that require a gradient.
        total_params: parameters of the model and its adapter, including quantized ones.
        buckets: copy of all gradients that is averaged over all processes, if each has all of them.

    Args:
        model: the model, which is changed.
        setting: how to train, and the size of the step.
        quantize: quantizes the linear layers of a model to NF4.
        adamw8bit: creates an optimizer with 8-bit states; default: that of bitsandbytes.
        mesh: the processes that train together, if the setting has several GPUs.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        setting: PlanSetting,
        *,
        quantize: Callable[[nn.Module], object] = quantize_model,
        adamw8bit: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        mesh: "DeviceMesh | None" = None,
    ) -> None:
        self.model, self.setting = model, setting
        self.total_params = sum(parameter.numel() for parameter in model.parameters())
        if setting.adapter is not None:
            if setting.method == "qlora":
                quantize(model)
            inject(model, setting.adapter)
            _add_start(model, setting.adapter)
            self.total_params += sum(
                p.numel() for m in adapted_modules(model).values() for p in m.adapters.parameters()
            )
        self.loss_path: StepLoss = _step_loss(model, setting)
        if self.loss_path == "fused":
            self._fused = _fused_loss()
        paths = {module: path for path, module in model.named_modules()}
        self.body = "" if self.loss_path == "hidden" else paths.get(model.base_model, "")
        if setting.shards_parameters:
            assert mesh is not None
            shard_model(model, mesh, replicated=self._replicated())
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if setting.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.trained, weight_decay=0.0, fused=True)
        else:
            self.optimizer = (adamw8bit or _adamw8bit)(self.trained)
        count = sum(parameter.numel() for parameter in self.trained) if setting.replicates_gradients else 0
        self.buckets = torch.zeros(count, dtype=self.trained[0].dtype)
        self.ids = torch.zeros(setting.batch_size, setting.length, dtype=torch.long)

    def run(self) -> None:
        """Run the entire step."""
        self.backward(self.loss())
        self.update()

    def loss(self) -> Tensor:
        """The forward pass."""
        if not self.setting.shards_parameters or self.loss_path in ("hidden", "own", "logits"):
            return self._loss()
        forward = self.model.forward  # the head's weight is gathered only within the model's own call

        def loss_in_call() -> Tensor:
            self.model.forward = forward
            return self._loss()

        self.model.forward = loss_in_call  # type: ignore[method-assign]
        return self.model()

    def _loss(self) -> Tensor:
        ids, model = self.ids, self.model
        if self.loss_path == "hidden":
            return model(input_ids=ids)[0].float().mean()
        if self.loss_path == "own":
            return model(input_ids=ids, labels=ids, **_without_cache(model)).loss
        if self.loss_path == "logits":
            logits = model(input_ids=ids, **_without_cache(model)).logits[:, :-1]
            return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
        routers = {"output_router_logits": True} if has_router_loss(model) else {}
        hidden = model.base_model(input_ids=ids, use_cache=False, **routers).last_hidden_state
        rows, targets = hidden[:, :-1].reshape(-1, hidden.shape[-1]), ids[:, 1:].reshape(-1)
        head = cast("nn.Linear", model.get_output_embeddings())
        if self.loss_path == "pieces":
            return cast("Tensor", HeadLoss.apply(rows, head.weight.detach(), head.bias, targets, 1.0))
        softcap, scale = logit_transform(model)
        given = (rows, head.weight, head.bias, targets, 1.0, FUSED_TILE, softcap, scale, ("log_probs",))
        return -cast("Any", self._fused.apply(*given))[0].double().sum()

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients; where every process has all of them, their mean."""
        loss.backward()
        if len(self.buckets):
            gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
            pieces = self.buckets.split([gradient.numel() for gradient in gradients])
            for piece, gradient in zip(pieces, gradients, strict=True):
                piece.copy_(gradient.flatten())
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(self.buckets.div_(self.setting.gpus))
            for piece, gradient in zip(pieces, gradients, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def update(self) -> None:
        """Clip the gradients, update the parameters, and free the gradients."""
        nn.utils.clip_grad_norm_(self.trained, TrainSettings().max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _replicated(self) -> list[nn.Parameter]:
        """The parameters that every process keeps whole: those that train with `fsdp`, except all of them."""
        if self.setting.sharding != "fsdp" or self.setting.method == "full":
            return []
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def warm(self) -> None:
        """Create the optimizer's states, as after a first step."""
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def _adamw8bit(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        msg = "measuring AdamW in 8 bits needs bitsandbytes: pip install bitsandbytes"
        raise MissingExtraError(msg) from error
    return AdamW8bit(parameters, weight_decay=0.0)


def _add_start(model: nn.Module, config: LoRAConfig) -> None:
    """Add a frozen copy of the initial factors where they do not start at zero, as training does."""
    if config.init not in ("pissa", "olora", "lora-ga", "loftq"):
        return
    for module in adapted_modules(model).values():
        for factors in (module.factors(name) for name in module.adapters):
            factors.start_A, factors.start_B = factors.lora_A.detach().clone(), factors.lora_B.detach().clone()
            factors.compensates = config.init == "loftq"


def _step_loss(model: "PreTrainedModel", setting: PlanSetting) -> StepLoss:
    """The loss path of `eckart train`, or a substitute for settings that it does not train."""
    if model.get_output_embeddings() is None:
        return "hidden"
    if setting.method == "full" or getattr(model.config, "is_encoder_decoder", False):
        return "own"
    return loss_path(model)


def _fused_loss() -> Any:
    """TRL's loss, which computes one tile of the logits at a time."""
    try:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    except ImportError as error:
        raise MissingExtraError.for_extra(EXTRA, "the loss of experts, and of scaled or capped logits,") from error
    return ChunkedLogProbFunction


def _without_cache(model: "PreTrainedModel") -> Mapping[str, bool]:
    return {"use_cache": False} if hasattr(model.config, "use_cache") else {}
