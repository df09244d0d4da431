"""Dispersions of the genes, fitted by themselves once all else is learned."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain, repeat
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor, nn

    from dra_scvi._module.autoencoder import Autoencoder


RATE = 0.1


def has_dispersions_to_fit(module: Autoencoder) -> bool:
    """Whether counts vary by one parameter a gene, which is not frozen."""
    is_of_genes = module.gene_likelihood in ("zinb", "nb") and module.dispersion == "gene"
    return is_of_genes and module.px_r.requires_grad


def fit_dispersions(
    module: Autoencoder, minibatches: Iterable[dict[str, Tensor | None]], n_steps: int
) -> None:
    """Raise the likelihood of counts by the dispersions alone; codes and means stay as they are.

    Dispersions begin at random, and nothing else in the network can make up for one that is
    wrong. At the learning rate of the networks they are still on their way when a short training
    ends, which is seen in counts that are drawn: they vary too much. Units of the encoder are
    dropped as in training, since counts of other cells are less well explained than those that
    were trained on. Minibatches of training cells are gone through as often as it takes for
    `n_steps` of Adam, whose rate falls to zero.
    """
    optimizer = torch.optim.Adam([module.px_r], lr=RATE)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(n_steps, 1))
    with _all_else_frozen(module), _dropping(module.z_encoder):
        repeated = chain.from_iterable(repeat(minibatches))
        for _, tensors in zip(range(n_steps), repeated, strict=False):
            _, _, output = module(tensors)
            optimizer.zero_grad()
            output.reconstruction_loss_sum.div(output.n_obs_minibatch).backward()
            optimizer.step()
            falling.step()


@contextmanager
def _all_else_frozen(module: Autoencoder) -> Iterator[None]:
    others = [p for p in module.parameters() if p.requires_grad and p is not module.px_r]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def _dropping(network: nn.Module) -> Iterator[None]:
    """Drop units as in training, while statistics of batch normalisation stay as they are."""
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.Dropout)]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.train(was)
