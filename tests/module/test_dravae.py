"""DRAVAE against scVI's own module, and the two-player game against its separate steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from scvi import REGISTRY_KEYS
from scvi.module import VAE

from dra_scvi import DRAVAE
from dra_scvi._module.matching import bhattacharyya

N_GENES, N_BATCH, N_CELLS = 12, 3, 16
UNUSED_BY_SCVI = ("l_encoder", "decoder.px_r_decoder")


def minibatch(n_cells: int = N_CELLS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rates = 3 * torch.rand(n_cells, N_GENES, generator=generator)
    return {
        REGISTRY_KEYS.X_KEY: torch.poisson(rates, generator=generator) + (rates > 2.9),
        REGISTRY_KEYS.BATCH_KEY: torch.arange(n_cells)[:, None] % N_BATCH,
        REGISTRY_KEYS.LABELS_KEY: torch.zeros(n_cells, 1, dtype=torch.long),
    }


def build(cls: type = DRAVAE, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    defaults = {"n_batch": N_BATCH, "n_labels": 1, "n_hidden": 8, "n_latent": 3}
    return cls(N_GENES, **{**defaults, **kwargs}).to(dtype)


def run(module: Any, tensors: dict[str, torch.Tensor], seed: int = 5, **loss: Any) -> Any:
    dtype = module.px_r.dtype if hasattr(module, "px_r") else torch.float64
    tensors = {k: v.to(dtype) if k == REGISTRY_KEYS.X_KEY else v for k, v in tensors.items()}
    torch.manual_seed(seed)
    return module(tensors, loss_kwargs=loss), tensors


def grads(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


LEARNED_LIBRARY = {
    "use_observed_lib_size": False,
    "library_log_means": torch.zeros(1, N_BATCH).numpy(),
    "library_log_vars": torch.ones(1, N_BATCH).numpy(),
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="zinb"),
        pytest.param({"gene_likelihood": "nb"}, id="nb"),
        pytest.param({"gene_likelihood": "poisson"}, id="poisson"),
        pytest.param({"gene_likelihood": "normal"}, id="normal"),
        pytest.param({"dispersion": "gene-batch"}, id="gene-batch"),
        pytest.param({"dispersion": "gene-cell"}, id="gene-cell"),
        pytest.param({"latent_distribution": "ln"}, id="logistic-normal"),
        pytest.param({"n_layers": 2, "encode_covariates": True}, id="deep"),
        pytest.param(LEARNED_LIBRARY, id="learned-library"),
    ],
)
def test_without_weights_and_with_a_normal_prior_the_loss_is_scvis(options: dict) -> None:
    # scvi-tools itself computes these two in single precision
    single = options.get("dispersion") == "gene-batch" or options is LEARNED_LIBRARY
    dtype, rtol, atol = (torch.float32, 1e-4, 1e-5) if single else (torch.float64, 1e-8, 1e-9)
    scvi_module, ours = build(VAE, dtype, **options), build(dtype=dtype, prior="normal", **options)
    missing = ours.load_state_dict(scvi_module.state_dict(), strict=False)
    assert not missing.unexpected_keys
    losses = []
    for module in (scvi_module, ours):
        (_, _, output), _ = run(module, minibatch(), kl_weight=0.3)
        output.loss.backward()
        losses.append(output)
    torch.testing.assert_close(losses[1].loss, losses[0].loss, rtol=rtol, atol=0)
    torch.testing.assert_close(
        losses[1].reconstruction_loss, losses[0].reconstruction_loss, rtol=rtol, atol=atol
    )
    expected, found = grads(scvi_module), grads(ours)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("divergence", ["bhattacharyya", "jensen-shannon"])
@pytest.mark.parametrize("weights", [(0.7, 2.0), (3.0, 0.0), (0.0, 0.5)])
def test_one_pass_gives_every_player_the_gradient_of_its_own_step(
    divergence: str, weights: tuple[float, float]
) -> None:
    """Oracle: freeze and detach, one backward pass per player, as adversarial training has it."""
    latent_weight, data_weight = weights
    game, separate = (build(prior="normal", divergence=divergence) for _ in range(2))

    (inference, generative, output), tensors = run(game, minibatch())
    torch.manual_seed(9)
    terms = game.matching(tensors, inference, generative, latent_weight, data_weight)
    (output.loss - sum(terms.values())).backward()

    weight_of = {"latent": latent_weight, "data": data_weight}
    players = {name: getattr(separate, f"{name}_discriminator") for name in weight_of}
    (inference, generative, output), tensors = run(separate, minibatch())
    torch.manual_seed(9)
    divergences = separately(separate, tensors, inference, generative)
    torch.manual_seed(9)
    detached = separately(separate, tensors, inference, generative, detach=True)
    autoencoder = [p for n, p in separate.named_parameters() if "discriminator" not in n]
    objective = output.loss + sum(w * divergences[n] for n, w in weight_of.items())
    expected = dict(
        zip(
            [n for n, _ in separate.named_parameters() if "discriminator" not in n],
            torch.autograd.grad(objective, autoencoder, retain_graph=True, allow_unused=True),
            strict=True,
        )
    )
    for name, player in players.items():
        if weight_of[name]:
            step = torch.autograd.grad(-detached[name], list(player.parameters()))
            names = [f"{name}_discriminator.{n}" for n, _ in player.named_parameters()]
            expected |= dict(zip(names, step, strict=True))

    found = grads(game)
    for name, gradient in expected.items():
        if gradient is None:
            assert name not in found
        else:
            torch.testing.assert_close(found.pop(name), gradient, rtol=1e-7, atol=1e-10)
    assert not found, "a player of weight 0 got a gradient"


def separately(
    module: DRAVAE,
    tensors: dict[str, torch.Tensor],
    inference: dict,
    generative: dict,
    detach: bool = False,
) -> dict[str, torch.Tensor]:
    """Both divergences without any gradient trick."""
    from dra_scvi._module.matching import DIVERGENCES

    estimate = DIVERGENCES[module.divergence]
    batch = tensors[REGISTRY_KEYS.BATCH_KEY]
    z = inference["z"]
    x = tensors[REGISTRY_KEYS.X_KEY]
    scale = x.sum(1).mean() / x.sum(1, keepdim=True)
    x_hat = torch.log1p(generative["px"].mean * scale)
    if detach:
        z, x_hat = z.detach(), x_hat.detach()
    prior_z = torch.randn(len(z), z.shape[1], dtype=z.dtype)
    latent, data = module.latent_discriminator, module.data_discriminator
    return {
        "latent": estimate(latent(prior_z, batch), latent(z, batch)),
        "data": estimate(data(torch.log1p(x * scale), batch), data(x_hat, batch)),
    }


def moved_by(module: DRAVAE, latent_weight: float, data_weight: float) -> set[str]:
    """First parts of the names of all parameters with a gradient that is not zero."""
    (inference, generative, _), tensors = run(module, minibatch())
    terms = module.matching(tensors, inference, generative, latent_weight, data_weight)
    sum(terms.values()).backward()
    return {name.split(".")[0] for name, gradient in grads(module).items() if gradient.any()}


def test_the_latent_match_reaches_the_encoder_and_its_discriminator_alone() -> None:
    assert moved_by(build(), 1.0, 0.0) == {"z_encoder", "latent_discriminator"}


def test_the_data_match_reaches_decoder_and_encoder() -> None:
    assert moved_by(build(), 0.0, 1.0) == {"z_encoder", "decoder", "data_discriminator"}


@pytest.mark.parametrize("prior", ["normal", "uniform", "mixture"])
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson", "normal"])
def test_every_parameter_in_use_gets_a_gradient(prior: str, likelihood: str) -> None:
    module = build(prior=prior, gene_likelihood=likelihood)
    (inference, generative, output), tensors = run(module, minibatch())
    terms = module.matching(tensors, inference, generative)
    (output.loss - sum(terms.values())).backward()
    unused = UNUSED_BY_SCVI
    if likelihood != "zinb":
        unused += ("decoder.px_dropout_decoder",)
    if likelihood == "poisson":
        unused += ("px_r",)
    without = {n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()}
    # a bias in front of batch normalisation has no effect
    without -= {n for n in without if n.endswith("Layer 0.0.bias")}
    assert {n for n in without if not n.startswith(unused)} == set()


@pytest.mark.parametrize("prior", ["normal", "uniform", "mixture"])
def test_a_minibatch_of_one_cell_gives_finite_terms(prior: str) -> None:
    module = build(prior=prior).eval()
    (inference, generative, output), tensors = run(module, minibatch(1))
    terms = module.matching(tensors, inference, generative)
    assert all(torch.isfinite(t) for t in [output.loss, *terms.values()])


def test_a_cell_without_counts_gives_finite_terms_and_gradients() -> None:
    module, tensors = build(), minibatch()
    tensors[REGISTRY_KEYS.X_KEY][3] = 0
    (inference, generative, output), tensors = run(module, tensors)
    terms = module.matching(tensors, inference, generative)
    (output.loss - sum(terms.values())).backward()
    assert all(g.isfinite().all() for g in grads(module).values())


def test_matching_sees_batches() -> None:
    module = build()
    (inference, generative, _), tensors = run(module, minibatch())
    torch.manual_seed(0)
    before = module.matching(tensors, inference, generative)
    tensors[REGISTRY_KEYS.BATCH_KEY] = tensors[REGISTRY_KEYS.BATCH_KEY].flip(0)
    torch.manual_seed(0)
    after = module.matching(tensors, inference, generative)
    assert all(before[name] != after[name] for name in before)


def test_data_are_matched_on_a_quarter_of_the_minibatch() -> None:
    module, tensors = build(), minibatch(160)
    (inference, generative, _), tensors = run(module, tensors)
    before = module.matching(tensors, inference, generative, 0.0, 1.0)["data_divergence"]
    tensors[REGISTRY_KEYS.X_KEY][40:] += 5
    after = module.matching(tensors, inference, generative, 0.0, 1.0)["data_divergence"]
    assert after == before
    tensors[REGISTRY_KEYS.X_KEY][39] += 5
    assert module.matching(tensors, inference, generative, 0.0, 1.0)["data_divergence"] != before


def test_hidden_layers_of_unequal_width() -> None:
    module = build(n_hidden=[10, 6])
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    assert shapes["z_encoder.encoder.fc_layers.Layer 0.0.weight"] == (10, N_GENES)
    assert shapes["z_encoder.encoder.fc_layers.Layer 1.0.weight"] == (6, 10)
    assert shapes["decoder.px_decoder.fc_layers.Layer 0.0.weight"] == (6, 3 + N_BATCH)
    assert shapes["decoder.px_scale_decoder.0.weight"] == (N_GENES, 10)
    (_, _, output), _ = run(module, minibatch())
    assert output.loss.isfinite()


@pytest.mark.parametrize(
    ("n_latent", "given", "expected"),
    [(1, None, 2), (2, None, 2), (3, None, 1), (10, None, 1), (2, 1, 1)],
)
def test_two_dimensions_have_two_hidden_layers(
    n_latent: int, given: int | None, expected: int
) -> None:
    module = build(n_latent=n_latent, n_layers=given)
    for network in (module.z_encoder.encoder, module.decoder.px_decoder):
        assert len(network.fc_layers) == expected


def test_equal_widths_are_scvis_layers() -> None:
    listed, counted = build(n_hidden=[8, 8]), build(VAE, n_hidden=8, n_layers=2)
    expected = {n: p.shape for n, p in counted.named_parameters()}
    ours = ("latent_discriminator", "data_discriminator", "prior")
    found = {n: p.shape for n, p in listed.named_parameters() if not n.startswith(ours)}
    assert found == expected


@pytest.mark.parametrize("options", [{}, LEARNED_LIBRARY], ids=["observed", "learned-library"])
@pytest.mark.parametrize("n_per_pass", [1, 4])
def test_marginal_likelihood_is_scvis_under_a_normal_prior(options: dict, n_per_pass: int) -> None:
    scvi_module = build(VAE, torch.float32, **options).eval()
    ours = build(dtype=torch.float32, prior="normal", **options).eval()
    ours.load_state_dict(scvi_module.state_dict(), strict=False)
    values = []
    for module in (scvi_module, ours):
        torch.manual_seed(3)
        values.append(module.marginal_ll(minibatch(), 8, n_mc_samples_per_pass=n_per_pass))
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-4)


def test_marginal_likelihood_knows_the_prior() -> None:
    """A mixture moved far away from the codes makes every cell less likely."""
    module = build(prior="mixture").eval()
    tensors = minibatch()
    tensors[REGISTRY_KEYS.X_KEY] = tensors[REGISTRY_KEYS.X_KEY].double()
    near = module.marginal_ll(tensors, 16)
    with torch.no_grad():
        module.prior.loc += 30
    assert (module.marginal_ll(tensors, 16) < near - 100).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "laplace"}, "prior must be one of 'normal', 'uniform', 'mixture'"),
        ({"divergence": "released"}, "divergence must be one of"),
        ({"prior": "mixture", "latent_distribution": "ln"}, "needs latent_distribution='normal'"),
        ({"prior": "mixture", "n_components": 0}, "at least 1"),
    ],
)
def test_unknown_choices_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_getters_see_the_same_distribution_as_the_loss() -> None:
    module = build()
    (_, generative, output), tensors = run(module, minibatch())
    expected = -generative["px"].log_prob(tensors[REGISTRY_KEYS.X_KEY]).sum(-1)
    torch.testing.assert_close(output.reconstruction_loss["reconstruction_loss"], expected)


def test_a_copy_is_independent() -> None:
    module = build(prior="mixture")
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.prior.loc += 1
    assert not torch.equal(twin.prior.loc, module.prior.loc)


@pytest.mark.parametrize(
    ("latent_distribution", "prior"), [("normal", "MixturePrior"), ("ln", "NormalPrior")]
)
def test_the_prior_follows_the_latent_distribution(latent_distribution: str, prior: str) -> None:
    module = build(latent_distribution=latent_distribution)
    assert type(module.prior).__name__ == prior


def test_batches_are_matched_within_components() -> None:
    """Oracle: the divergence with every code weighed by what its batch is composed of."""
    module = build(prior="mixture", n_components=2)
    with torch.no_grad():
        module.prior.loc[0], module.prior.loc[1] = -0.1, 0.1
        module.prior.raw_scale.fill_(-2.0)
    shares = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    module.composition.shares.copy_(shares)
    (inference, generative, _), tensors = run(module, minibatch(90))
    z, batch = inference["z"], tensors[REGISTRY_KEYS.BATCH_KEY]
    torch.manual_seed(9)
    alike = module.matching(tensors, inference, generative, within_components=False)
    torch.manual_seed(9)
    apart = module.matching(tensors, inference, generative)
    weight = module.composition.weights(module.prior.responsibilities(z), batch.view(-1))
    assert weight.std() > 0.01
    torch.manual_seed(9)
    h_real = module.latent_discriminator(module.prior.sample(len(z)), batch)
    h_fake = module.latent_discriminator(z, batch)
    expected = bhattacharyya(h_real, h_fake, weight)
    torch.testing.assert_close(apart["latent_divergence"], expected)
    assert not torch.equal(apart["latent_divergence"], alike["latent_divergence"])


@pytest.mark.parametrize("options", [{"n_batch": 1}, {"prior": "normal"}, {"prior": "uniform"}])
def test_without_batches_or_components_all_codes_count_alike(options: dict[str, Any]) -> None:
    module = build(**options)
    (inference, _, _), tensors = run(module, minibatch())
    assert module._weigh(inference["z"], tensors[REGISTRY_KEYS.BATCH_KEY]) is None


def test_a_state_without_compositions_is_loaded() -> None:
    module = build()
    state = {k: v for k, v in module.state_dict().items() if not k.startswith("composition")}
    module.load_state_dict(state)
    assert torch.equal(module.composition.shares, build().composition.shares)


@pytest.mark.parametrize("n_batch", [1, N_BATCH])
@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_a_step_on_a_device_waits_for_no_value(
    n_batch: int, likelihood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On "meta", a device without values, asking for one fails, and so does a tensor left behind.

    Only scvi-tools' check of the distribution of codes asks for any.
    """
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    options = {"n_batch": n_batch, "gene_likelihood": likelihood}
    module = build(dtype=torch.float32, **options).to("meta")
    tensors = {name: value.to("meta") for name, value in minibatch().items()}
    tensors[REGISTRY_KEYS.X_KEY] = tensors[REGISTRY_KEYS.X_KEY].float()
    inference, generative, output = module(tensors)
    divergences = module.matching(tensors, inference, generative)
    (output.loss - sum(divergences.values())).backward()
    assert len(divergences) == 2
    assert {grad.device.type for grad in grads(module).values()} == {"meta"}


@pytest.mark.parametrize("axes", [False, True])
def test_after_training_cells_are_decoded_for_axes_alone(axes: bool) -> None:
    module, decoded = build(dtype=torch.float32, expression_axes=axes, n_neighbors=2), []
    module.decoder.register_forward_hook(lambda *_: decoded.append(1))
    assert module.calibrate([minibatch()])
    assert bool(decoded) is axes
