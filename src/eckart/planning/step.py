"""One training step as `eckart train` runs it, on tensors with data or without."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from eckart.errors import MissingExtraError
from eckart.evaluation.model import EXTRA
from eckart.nn import LoRAConfig, adapted_modules, inject, quantize_model
from eckart.nn.head_loss import HeadLoss
from eckart.planning.setting import PlanSetting
from eckart.training import TrainSettings
from eckart.training.loss_path import FUSED_TILE, LossPath, has_router_loss, logit_transform, loss_path

if TYPE_CHECKING:
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

    Args:
        model: the model, which is changed.
        setting: how to train, and the size of the step.
        quantize: quantizes the linear layers of a model to NF4.
        adamw8bit: creates an optimizer with 8-bit states; default: that of bitsandbytes.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        setting: PlanSetting,
        *,
        quantize: Callable[[nn.Module], object] = quantize_model,
        adamw8bit: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
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
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if setting.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.trained, weight_decay=0.0, fused=True)
        else:
            self.optimizer = (adamw8bit or _adamw8bit)(self.trained)
        self.ids = torch.zeros(setting.batch_size, setting.length, dtype=torch.long)

    def run(self) -> None:
        """Run the entire step."""
        self.backward(self.loss())
        self.update()

    def loss(self) -> Tensor:
        """The forward pass."""
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
        """Compute the gradients."""
        loss.backward()

    def update(self) -> None:
        """Clip the gradients, update the parameters, and free the gradients."""
        nn.utils.clip_grad_norm_(self.trained, TrainSettings().max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

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
