"""A causal language model of transformers: its parts, what is trained of it, and its reference.

A model is taken as it is in memory; nothing is loaded again by name. Dropout is off while training:
a log-probability that is random is no log-probability of the policy, and π / π_old would not be 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from upslope.errors import ArgumentError
from upslope.language.requirements import need


def unwrapped(model: Any) -> Any:
    """Return the model of transformers, its adapters in place, without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: Any) -> Any:
    """Return the part of a causal language model from token ids to hidden states."""
    return unwrapped(model).base_model


def head(model: Any) -> Any:
    """Return the part from hidden states to logits."""
    return unwrapped(model).get_output_embeddings()


def vocabulary_size(model: Any) -> int:
    """Return the number of logits."""
    return int(unwrapped(model).config.get_text_config().vocab_size)


def context_length(model: Any) -> int | None:
    """Return the most tokens that the model takes at once, or None where it does not say."""
    found = getattr(unwrapped(model).config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)


def trainable(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name; those that are tied appear once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def shared(model: nn.Module, other: nn.Module) -> bool:
    """Return whether trained weights of a model are another's too."""
    trained = {p.data_ptr() for p in trainable(model).values()}
    return any(p.data_ptr() in trained for p in other.parameters())


def check_model(model: Any, tokenizer: Any) -> None:
    """Raise ArgumentError for what is no causal language model, or not this tokenizer's."""
    if not isinstance(model, nn.Module) or not hasattr(unwrapped(model), "get_output_embeddings"):
        raise ArgumentError(
            f"model takes a causal language model of transformers, in memory, got {model!r:.80}"
        )
    if head(model) is None or backbone(model) is unwrapped(model):
        raise ArgumentError(
            f"model takes a causal language model with a head, such as LlamaForCausalLM, got "
            f"{type(unwrapped(model)).__name__}"
        )
    if tokenizer is None or not hasattr(tokenizer, "eos_token_id"):
        raise ArgumentError(f"tokenizer takes a tokenizer of transformers, got {tokenizer!r:.80}")
    if tokenizer.eos_token_id is None:
        raise ArgumentError("tokenizer has no end token: set tokenizer.eos_token")
    if len(tokenizer) > vocabulary_size(model):
        raise ArgumentError(
            f"tokenizer has {len(tokenizer)} tokens and the model's vocabulary "
            f"{vocabulary_size(model)}: model.resize_token_embeddings(len(tokenizer)) widens it"
        )
    with torch.no_grad():
        ids = torch.zeros((1, 2), dtype=torch.long, device=device_of(model))
        with evaluating(model):
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
            whole = model(**given).logits
            parts = head(model)(backbone(model)(**given)[0])
    capped = getattr(unwrapped(model).config.get_text_config(), "final_logit_softcapping", None)
    close = torch.allclose(whole.float(), parts.float(), rtol=1e-2, atol=1e-3)
    if not close or capped is not None:  # a cap changes little until logits have grown
        raise ArgumentError(
            f"{type(unwrapped(model)).__name__} changes its logits after its head (soft-capping, "
            "scaling), which Upslope does not reproduce"
        )


def device_of(model: Any) -> torch.device:
    """Return the device of the model's first parameter."""
    device: torch.device = next(model.parameters()).device
    return device


def add_adapter(model: Any, peft_config: Any) -> Any:
    """Return the model with a new adapter of peft; the model's own weights are frozen."""
    peft = need("peft")
    if hasattr(model, "peft_config"):
        raise ArgumentError("the model has an adapter already: give it without peft_config")
    if not isinstance(peft_config, peft.PeftConfig) or peft_config.is_prompt_learning:
        raise ArgumentError(
            f"peft_config takes an adapter within the layers, such as LoraConfig, got "
            f"{type(peft_config).__name__}"
        )
    with warnings.catch_warnings():  # peft asks transformers for a name that is on its way out
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return peft.get_peft_model(model, peft_config)
        except (TypeError, ValueError) as error:  # no such layers, no such rank
            raise ArgumentError(f"peft_config does not fit the model: {error}") from error


def check_switches_off(peft_config: Any) -> None:
    """Raise ArgumentError for an adapter that changes the model's own weights too.

    Switched off, it would not leave the model as it was given, which the reference is.
    """
    for name, takes in (
        ("bias", ("none",)),
        ("init_lora_weights", (True, False, "gaussian")),
    ):
        got = getattr(peft_config, name, takes[0])
        if got not in takes:
            raise ArgumentError(
                f"peft_config has {name}={got!r}, which changes weights of the model itself, so "
                "that with the adapter switched off it is not the reference: it takes "
                f"{' or '.join(map(repr, takes))}, or a reference_model beside it"
            )


def prepare(model: Any, *, gradient_checkpointing: bool) -> None:
    """Put the model into the state it is trained in: dropout off, activations as asked."""
    plain = unwrapped(model)
    if gradient_checkpointing:
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()  # with frozen embeddings nothing else reaches back
        enable = getattr(plain, "activation_checkpointing_enable", None)
        enable = enable or plain.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.eval()


@contextlib.contextmanager
def training(model: Any) -> Iterator[None]:
    """Within, layers that can recompute their activations do; they ask `training` for that.

    Dropout is off, also where the model was put into training mode in the meantime.
    """
    model.eval()
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for layer in layers:
        layer.training = True  # the layer alone: what is inside it, dropout too, stays off
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, the model is in evaluation mode; afterwards each module is as it was."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def precision(device: torch.device, bf16: bool) -> torch.autocast:
    """Return a context in which matrix products are bfloat16, if asked; sums stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


class Reference:
    """π_ref: the model as it was given.

    With an adapter that the trainer made, the same weights with the adapter switched off. Otherwise
    a copy of the trained parameters as they were at the start, put in their place while it is used.
    Or a model of one's own.
    """

    def __init__(self, model: Any, *, own_adapter: bool, given: Any = None) -> None:
        self.model, self.own_adapter, self.given = model, own_adapter, given
        self.parameters = list(trainable(model).values())
        copies = given is None and not own_adapter
        self.initial = [p.detach().clone() for p in self.parameters] if copies else []

    @contextlib.contextmanager
    def use(self) -> Iterator[Any]:
        """Give the reference model, without gradients."""
        with torch.no_grad():
            if self.given is not None:
                with evaluating(self.given):
                    yield self.given
            elif self.own_adapter:
                with self.model.disable_adapter():
                    yield self.model
            else:
                self._swap()
                try:
                    yield self.model
                finally:
                    self._swap()

    def _swap(self) -> None:
        torch.clear_autocast_cache()  # it knows a weight by its object, which both models share
        for k, parameter in enumerate(self.parameters):
            parameter.data, self.initial[k] = self.initial[k], parameter.data

    def fingerprint(self) -> str:
        """Return a hash of the weights that differ from the policy's, by which resume knows it."""
        return fingerprint(self.initial if self.given is None else self.given.parameters())


def frozen(model: nn.Module) -> str:
    """Return a hash of the weights that are not trained, which no checkpoint holds."""
    return fingerprint(p for p in model.parameters() if not p.requires_grad)


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Return a hash of the numbers of tensors, in their order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()
