"""The contracts of autoencoders and of those with codes, tokenizers, run on every file of configs/tokenizer."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny import AUTOENCODERS, SPEC, frames, tiny_autoencoder, tiny_tokenizer

from worldmodel.config.cli import compose_config
from worldmodel.errors import ConfigError
from worldmodel.likelihoods import LogisticMixture
from worldmodel.quantizers import FiniteScalarQuantizer, ProductQuantizer, VectorQuantizer
from worldmodel.runs.models import build_prior, build_tokenizer, load_weights
from worldmodel.tokenizers import VQVAE, Autoencoder, Tokenizer
from worldmodel.training.checkpoint import save_tensors
from worldmodel.training.objectives import TokenizerObjective
from worldmodel.types import Segment, Spec, to_float, to_uint8

# These are vqvae with other widths, which a tiny model replaces.
KINDS = [name for name in AUTOENCODERS if name not in ("vqvae_4x4", "vqvae_16x16", "vqvae_21x21")]
WITH_CODES = [name for name in KINDS if isinstance(tiny_autoencoder(name), Tokenizer)]


@pytest.fixture(params=KINDS)
def autoencoder(request: pytest.FixtureRequest) -> Autoencoder:
    return tiny_autoencoder(request.param)


@pytest.fixture(params=WITH_CODES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tiny_tokenizer(request.param)


def test_shapes(autoencoder: Autoencoder) -> None:
    x = frames(3)
    result = autoencoder(x)
    assert autoencoder.grid in ((4, 4), (4, 4, 3), (2 * 2 + 4 * 4,))
    assert autoencoder.frame_shape == SPEC.frame_shape
    assert result.frames.shape == x.shape and not result.frames.requires_grad
    assert result.frames.dtype == torch.float32 and result.frames.abs().max() < 2
    assert result.losses and all(term.shape == () for term in result.losses.values())


def test_codes(tokenizer: Tokenizer) -> None:
    x = frames(3)
    result = tokenizer(x)
    assert result.codes is not None and result.codes.shape == (3, *tokenizer.grid)
    assert torch.equal(tokenizer.encode(x), result.codes)
    assert tokenizer.decode(result.codes).shape == x.shape
    levels = tokenizer.levels
    assert levels == ((4, 4, *tokenizer.slots),) or (levels[-1] == (4, 4) and len(levels) == 2)
    assert (
        sum(map(math.prod, levels))
        == math.prod(tokenizer.grid)
        == sum(b[0].numel() for b in tokenizer.books(result.codes))
    )
    several = tokenizer.slots or ((len(levels),) if len(levels) > 1 else ())
    assert tokenizer.codebook().shape[:-1] == (*several, tokenizer.num_codes)


def test_bits_are_reported_where_there_is_a_bound(autoencoder: Autoencoder) -> None:
    """By the training objective and by the model, which refuses where there is none."""
    x = frames(3)
    flags = torch.zeros(3, 1, dtype=torch.bool)
    segment = Segment(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 1), flags, flags, ~flags, x[:, None])
    objective = TokenizerObjective(autoencoder).train()
    metrics = objective(segment, torch.Generator().manual_seed(0)).metrics
    assert ("bits_per_dim" in metrics) == autoencoder.likelihood.exact
    assert ("usage" in metrics) == isinstance(autoencoder, Tokenizer)
    autoencoder.eval()
    if not autoencoder.likelihood.exact:
        with pytest.raises(ConfigError, match="choose Categorical or LogisticMixture"):
            autoencoder.bound(x)
        return
    assert 7 < metrics["bits_per_dim"] < 12  # nothing is known yet: ln 256 and the latents' cost
    bound = autoencoder.bound(x, torch.Generator().manual_seed(0), samples=1)
    assert bound.total.shape == bound.reconstruction.shape == (3,)
    bits = float(bound.total.detach().mean()) / autoencoder.subpixels / math.log(2)
    assert bits == pytest.approx(float(metrics["bits_per_dim"]), abs=0.1)
    if isinstance(autoencoder, VQVAE):
        torch.testing.assert_close(
            bound.total - bound.reconstruction, torch.full((3,), autoencoder.uniform_nats()), rtol=0, atol=1e-3
        )


def test_decoding_the_codes_is_the_reconstruction(tokenizer: Tokenizer) -> None:
    result = tokenizer(frames(2))
    torch.testing.assert_close(tokenizer.expected_frames(result.codes), result.frames)
    assert torch.equal(tokenizer.decode(result.codes), to_uint8(tokenizer.expected_frames(result.codes)))


def test_every_parameter_learns(autoencoder: Autoencoder) -> None:
    autoencoder.train()
    result = autoencoder(frames(4), torch.Generator().manual_seed(0))
    torch.stack([*result.losses.values()]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in autoencoder.parameters())


def test_a_few_steps_lower_the_reconstruction_error(autoencoder: Autoencoder) -> None:
    """VIMCO has but one term, which is the reconstruction and the cost of the codes together."""
    autoencoder.train()
    x, generator = frames(4) // 3 + 85, torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(autoencoder.parameters(), 3e-3)
    errors = []
    for _ in range(60):
        losses = autoencoder(x, generator).losses
        errors.append(float(losses.get("reconstruction", losses.get("bound")).detach()))
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("name", KINDS)
def test_saved_and_loaded_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, other = tiny_autoencoder(name), tiny_autoencoder(name)
    save_tensors(tmp_path / "weights.safetensors", model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    load_weights(other, tmp_path / "weights.safetensors", "train first")
    x = frames(2)
    first, second = (each(x, torch.Generator().manual_seed(0)) for each in (model, other))
    assert torch.equal(first.frames, second.frames)
    assert all(torch.equal(term, second.losses[key]) for key, term in first.losses.items())
    if isinstance(model, Tokenizer) and isinstance(other, Tokenizer):
        codes = model.encode(x)
        assert torch.equal(codes, other.encode(x))
        assert torch.equal(model.decode(codes), other.decode(codes))


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("vqvae", 64, (8, 8)),
        ("vqvae_4x4", 64, (4, 4)),
        ("vqvae_16x16", 64, (16, 16)),
        ("vqvae_21x21", 84, (21, 21)),
        ("fsq", 64, (8, 8)),
        ("gumbel", 64, (8, 8)),
        ("vqvae_8x8x10", 32, (8, 8, 10)),
        ("vimco", 32, (8, 8, 10)),
        ("vqvae2", 64, (8 * 8 + 16 * 16,)),
    ],
)
def test_a_named_tokenizer_makes_its_grid_of_512_codes(name: str, size: int, grid: tuple[int, ...]) -> None:
    config = compose_config([f"tokenizer={name}"])
    tokenizer = build_tokenizer(config, Spec("x", (3, size, size), ("a",), 1.0))
    assert (tokenizer.grid, tokenizer.num_codes) == (grid, 512)


def test_strides_other_than_two() -> None:
    settings = [f"+tokenizer.{part}={{_target_: worldmodel.nn.convnets.{kind}, _partial_: true, strides: [2,3]}}"
                for part, kind in (("encoder", "ConvEncoder"), ("decoder", "ConvDecoder"))]  # fmt: skip
    config = compose_config(["tokenizer.widths=[8,8]", *settings])
    tokenizer = build_tokenizer(config, Spec("x", (3, 12, 24), ("a",), 1.0))
    x = torch.randint(0, 256, (2, 3, 12, 24), dtype=torch.uint8)
    assert tokenizer.grid == (2, 4) and tokenizer(x).frames.shape == x.shape
    assert tokenizer.decode(tokenizer.encode(x)).shape == x.shape
    with pytest.raises(ConfigError, match="frames of 16×24 cannot be made 6 times smaller"):
        build_tokenizer(config, Spec("x", (3, 16, 24), ("a",), 1.0))
    with pytest.raises(ConfigError, match=r"1 widths and 2 strides; tokenizer\.widths has one for each stride"):
        build_tokenizer(compose_config(["tokenizer.widths=[8]", *settings]), Spec("x", (3, 12, 24), ("a",), 1.0))


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_the_weights_of_loss_terms_are_those_of_its_terms(name: str) -> None:
    """The paper's β for every VQ-VAE; none for FSQ, which has no commitment: a weight would be an error there."""
    config = compose_config([f"tokenizer={name}"])
    model = build_tokenizer(config, SPEC)
    losses = model(frames(2)).losses
    own = {"fsq": set(), "gumbel": {"kl", "diversity"}, "vae": {"kl"}, "vimco": {"bound"}}.get(name, {"commitment"})
    weights = model.loss_weights
    assert losses.keys() - {"reconstruction"} == own
    # What a bound is made of has no weight: the plain sum is what is reported.
    assert weights.keys() == (set() if name in ("vae", "vimco") else own)
    assert weights.get("commitment", 0.25) == 0.25


def test_sound_has_rank_one() -> None:
    model = VQVAE((1, 64), partial(VectorQuantizer, width=4), widths=[4, 4], num_codes=8).eval()
    sound = torch.randint(0, 256, (2, 1, 64), dtype=torch.uint8)
    assert model.encode(sound).shape == (2, 16)
    assert model(sound).frames.shape == sound.shape


def test_a_product_quantizer_gives_the_grid_an_axis_of_slots() -> None:
    """Built by Hydra, as the paper's 8×8×10 is: partials within a partial."""
    node = OmegaConf.create(
        {
            "_target_": "worldmodel.tokenizers.VQVAE",
            "widths": [8, 8],
            "blocks": 1,
            "num_codes": 16,
            "quantizer": {
                "_target_": "worldmodel.quantizers.ProductQuantizer",
                "_partial_": True,
                "slots": 3,
                "quantizer": {"_target_": "worldmodel.quantizers.VectorQuantizer", "_partial_": True, "width": 4},
            },
        }
    )
    torch.manual_seed(0)
    model = build_tokenizer(OmegaConf.create({"tokenizer": node}), SPEC).eval()
    assert (model.grid, model.slots, model.num_codes) == ((4, 4, 3), (3,), 16)
    assert model.codebook().shape == (3, 16, 4)
    x = frames(2)
    result = model(x)
    assert result.codes.shape == (2, 4, 4, 3) and torch.equal(model.encode(x), result.codes)
    assert result.frames.shape == x.shape
    torch.testing.assert_close(model.expected_frames(result.codes), result.frames)
    one, two, three = result.codes.unbind(-1)  # codebooks of their own: not thrice the same code
    assert not torch.equal(one, two) and not torch.equal(two, three)
    other = result.codes.clone()
    other[..., 1] = (other[..., 1] + 1) % 16
    assert not torch.allclose(model.expected_frames(other), result.frames)


def test_a_product_of_roundings_brings_its_codes() -> None:
    product = partial(ProductQuantizer, 2, partial(FiniteScalarQuantizer, [4, 3]))
    model = VQVAE((3, 16, 16), product, widths=[4, 4], blocks=1).eval()
    assert (model.grid, model.num_codes) == ((4, 4, 2), 12)
    assert model.encode(frames(1)).shape == (1, 4, 4, 2)


@pytest.mark.parametrize("slots", [(), (2,)])
def test_usage_is_counted_in_every_codebook(slots: tuple[int, ...]) -> None:
    """Two slots, of which one uses half its codes and the other a quarter: 3/8 of all, not the union of both."""
    quantizer = partial(VectorQuantizer, width=2)
    model = VQVAE(
        (3, 16, 16), partial(ProductQuantizer, 2, quantizer) if slots else quantizer, [4], blocks=1, num_codes=8
    )
    objective = TokenizerObjective(model, window=3)
    assert objective.history.shape == (3, 2 if slots else 1, 8)
    codes = torch.tensor([[0, 1, 2, 3], [3, 4, 3, 4]])  # (slots, positions)
    found = objective._usage(codes.T[None] if slots else codes[:1])
    found = objective._usage(codes.T[None] if slots else codes[:1])
    assert found["usage"] == (0.375 if slots else 0.5)
    torch.testing.assert_close(found["perplexity"], torch.tensor(3.0 if slots else 4.0, dtype=torch.float64))


def test_an_autoencoder_without_codes_has_no_prior() -> None:
    config = compose_config(["tokenizer=vae", "tokenizer.widths=[8,8]"])
    with pytest.raises(ConfigError, match=r"VAE makes no codes.* choose prior=gaussian .* tokenizer=vqvae"):
        build_prior(config, SPEC, build_tokenizer(config, SPEC))


@pytest.mark.parametrize("name", ["vae", "vimco", "vqvae_8x8x10"])
def test_the_likelihood_is_a_setting(name: str) -> None:
    mixture = "worldmodel.likelihoods.LogisticMixture"
    config = compose_config([f"tokenizer={name}", f"tokenizer.likelihood._target_={mixture}"])
    model = build_tokenizer(config, SPEC)
    assert isinstance(model.likelihood, LogisticMixture)
    assert model(frames(1)).nats is not None


def test_frames_that_cannot_be_halved() -> None:
    with pytest.raises(ConfigError, match="84×84 cannot be halved 3 times"):
        build_tokenizer(compose_config(), Spec("x", (3, 84, 84), ("a",), 1.0))


def test_the_number_of_codes_is_a_setting() -> None:
    assert build_tokenizer(compose_config(["tokenizer.num_codes=1024"]), SPEC).num_codes == 1024


def test_frames_survive_the_scaling() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_float(levels).min() == -1
    assert to_float(levels).max() == 1
