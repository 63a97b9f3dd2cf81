"""The latent generators, what grows them, and the classifier: shapes, published layouts, folding and capture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import Compare
from tests.published import randomized
from tilefuse.capture import from_module
from tilefuse.errors import ModelError
from tilefuse.export.architectures import ARCHITECTURES, build, infer
from tilefuse.export.generators.cgan import CGAN, ProjectionDiscriminator, one_hot
from tilefuse.export.generators.classifier import Classifier
from tilefuse.export.generators.dcgan import DCGAN, ProjectedDCGAN
from tilefuse.export.generators.discriminators import DCGANDiscriminator, with_spread
from tilefuse.export.generators.gan import GAN, GANDiscriminator
from tilefuse.export.generators.pggan import PGGAN, pixel_norm
from tilefuse.export.generators.progressive import Equalised, GrowingDiscriminator, GrowingPGGAN
from tilefuse.export.generators.vae import VAE, reparameterise

GENERATORS = [
    (GAN(latent=5, hidden=(7, 3), channels=3, size=6), (3, 6, 6), {}),
    (GAN(), (1, 28, 28), {}),
    (DCGAN(latent=6, features=2, channels=3, doublings=4), (3, 64, 64), {"value_range": (-1.0, 1.0)}),
    (DCGAN(latent=1, features=3, channels=1, doublings=1), (1, 8, 8), {"value_range": (-1.0, 1.0)}),
    (ProjectedDCGAN(latent=5, features=4), (1, 28, 28), {"value_range": (-1.0, 1.0)}),
    (CGAN(latent=5, classes=3, embedding=2, features=4, size=2), (1, 8, 8), {"value_range": (-1.0, 1.0)}),
    (VAE(latent=3, features=4), (1, 28, 28), {}),
    (PGGAN(latent=4, widths=(5, 4, 3, 2)), (3, 32, 32), {"value_range": (-1.0, 1.0)}),
    (PGGAN(latent=2, widths=(3,), channels=1), (1, 4, 4), {"value_range": (-1.0, 1.0)}),
]


def named(value: object) -> str:
    return type(value).__name__ if isinstance(value, nn.Module) else ""


@pytest.mark.parametrize(("module", "shape", "expected"), GENERATORS, ids=named)
def test_generators_draw_what_their_descriptor_says(
    module: nn.Module, shape: tuple[int, ...], expected: dict[str, object], assert_close: Compare
) -> None:
    module = randomized(module)
    weights = module.state_dict()
    descriptor = infer(weights)
    assert [a.name for a in ARCHITECTURES if a.detect(weights)] == [type(module).__name__]
    assert descriptor.inputs["latent"] == module.latent_shape
    assert descriptor.latent == module.latent_shape[0]
    assert descriptor.value_range == expected.get("value_range", (0.0, 1.0))
    inputs = [torch.randn(2, *size) for size in descriptor.inputs.values()]
    drawn = module(*inputs)
    assert drawn.shape == (2, *shape)
    assert torch.equal(build(descriptor, weights)(*inputs), drawn)
    graph = from_module(module, *inputs)
    scale = drawn.abs().max().item()
    assert_close(graph.evaluate(*inputs)[0], drawn, max_abs=1e-5 * max(1.0, scale))
    if type(module).__name__ != "PGGAN":
        low, high = descriptor.value_range
        assert low <= drawn.min().item() <= drawn.max().item() <= high


def test_one_latent_draws_the_same_image_alone_and_in_a_batch(assert_close: Compare) -> None:
    torch.manual_seed(0)
    for module, _, _ in GENERATORS:
        module = randomized(module)
        inputs = [torch.randn(3, *size) for size in infer(module.state_dict()).inputs.values()]
        assert_close(module(*(x[1:2] for x in inputs)), module(*inputs)[1:2], max_abs=1e-4, what=type(module).__name__)


def test_dcgan_has_the_layout_of_the_published_generator() -> None:
    # The PyTorch examples' netG for 64x64 images, by its keys and shapes.
    shapes = {key: tuple(value.shape) for key, value in DCGAN(100, 64, 3, 4).state_dict().items()}
    assert shapes["main.0.weight"] == (100, 512, 4, 4)
    assert [shapes[f"main.{i}.weight"] for i in (3, 6, 9, 12)] == [
        (512, 256, 4, 4),
        (256, 128, 4, 4),
        (128, 64, 4, 4),
        (64, 3, 4, 4),
    ]
    assert shapes["main.10.running_var"] == (64,)
    assert not any(key.startswith("main.13") or key.endswith("main.0.bias") for key in shapes)


def test_a_published_discriminator_is_no_generator() -> None:
    layers = [nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 4, bias=False)]
    with pytest.raises(ModelError, match="no known architecture"):
        infer({f"main.{key}": value for key, value in nn.Sequential(*layers).state_dict().items()})


def test_cgan_looks_its_label_up(assert_close: Compare) -> None:
    module = randomized(CGAN(latent=4, classes=5, embedding=3, features=4, size=2))
    labels = torch.tensor([4, 0, 2])
    table = module.embedding.weight.T
    assert_close(module.embedding(one_hot(labels, 5)), F.embedding(labels, table), max_abs=0.0)
    latents = torch.randn(1, 4).expand(3, 4)
    drawn = module(latents, one_hot(labels, 5))
    assert not torch.allclose(drawn[0], drawn[1])


def test_vae_reparameterises_and_reconstructs(assert_close: Compare) -> None:
    module = randomized(VAE(latent=3, features=4))
    image = torch.rand(2, 1, 28, 28)
    mean, log_variance = module.encode(image)
    assert mean.shape == log_variance.shape == (2, 3)
    assert_close(torch.cat([mean, log_variance], 1), module.encoder(image), max_abs=0.0)
    assert_close(module.reconstruct(image), torch.sigmoid(module.decoder(mean)), max_abs=0.0)
    noise = torch.tensor([[1.0, -2.0, 0.0]])
    drawn = reparameterise(torch.tensor([[0.5, 0.5, 0.5]]), torch.log(torch.tensor([[4.0, 9.0, 1.0]])), noise)
    assert_close(drawn, torch.tensor([[2.5, -5.5, 0.5]]), max_abs=1e-6)


def test_pixel_norm_gives_unit_mean_square(assert_close: Compare) -> None:
    x = torch.tensor([[[[3.0]], [[4.0]]]])
    assert_close(pixel_norm(x), x / 12.5**0.5, max_abs=1e-6)


def grown(seed: int = 0) -> GrowingPGGAN:
    torch.manual_seed(seed)
    module = GrowingPGGAN(4, (6, 5, 4, 3), 3)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return module


def test_growing_generator_folds_to_plain_convolutions(assert_close: Compare) -> None:
    module = grown()
    latents = torch.randn(3, 4, 1, 1)
    expected = module(latents, 3, 1.0)
    assert_close(module.fold()(latents), expected, max_abs=1e-5 * expected.abs().max().item())
    assert infer(module.fold().state_dict()).hyperparameters == {"latent": 4, "widths": (6, 5, 4, 3), "channels": 3}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_generator_fades_from_the_level_below(level: int, assert_close: Compare) -> None:
    module = grown()
    latents = torch.randn(2, 4, 1, 1)
    below, full = module(latents, level - 1, 1.0), module(latents, level, 1.0)
    assert full.shape == (2, 3, 4 * 2**level, 4 * 2**level)
    enlarged = below.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert_close(module(latents, level, 0.0), enlarged, max_abs=1e-6)
    assert_close(module(latents, level, 0.25), 0.75 * enlarged + 0.25 * full, max_abs=1e-5)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_discriminator_fades_from_the_level_below(level: int, assert_close: Compare) -> None:
    torch.manual_seed(1)
    module = GrowingDiscriminator((6, 5, 4, 3), 3)
    image = torch.randn(4, 3, 4 * 2**level, 4 * 2**level)
    assert_close(module(image, level, 0.0), module(F.avg_pool2d(image, 2), level - 1, 1.0), max_abs=1e-5)
    assert not torch.allclose(module(image, level, 0.0), module(image, level, 1.0))


def test_discriminators_see_a_batch_of_one_picture_repeated() -> None:
    torch.manual_seed(1)
    growing, comparing = GrowingDiscriminator((6, 5), 3), DCGANDiscriminator(3, 8, 2, 2, compares=True)
    pictures = torch.randn(4, 3, 8, 8)
    repeated = pictures[:1].expand(4, 3, 8, 8)
    assert not torch.allclose(growing(pictures, 1, 1.0)[:1], growing(repeated, 1, 1.0)[:1])
    assert not torch.allclose(comparing(pictures)[:1], comparing(repeated)[:1])


def test_spread_by_hand(assert_close: Compare) -> None:
    features = torch.tensor([[[[1.0]], [[0.0]]], [[[3.0]], [[6.0]]]])
    expected = torch.tensor([[1.0, 0.0, 2.0], [3.0, 6.0, 2.0]])[..., None, None]
    assert_close(with_spread(features), expected, max_abs=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape", "fan_in"),
    [
        (nn.Conv2d(32, 48, 3, padding=1), (4, 32, 9, 9), 32 * 9),
        (nn.ConvTranspose2d(32, 48, 4), (8, 32, 1, 1), 32),
        (nn.Linear(64, 48), (64, 64), 64),
    ],
    ids=named,
)
def test_equalised_layers_keep_the_variance(layer: nn.Module, shape: tuple[int, ...], fan_in: int) -> None:
    torch.manual_seed(0)
    module = Equalised(layer, gain=1.0)
    assert module.multiplier == pytest.approx(fan_in**-0.5)
    result: Tensor = module(torch.randn(shape))
    inner = result[..., 1:-1, 1:-1] if result.ndim == 4 and result.shape[2] == 9 else result
    assert inner.std().item() == pytest.approx(1.0, rel=0.1)


def test_a_layer_without_weights_is_not_equalised() -> None:
    with pytest.raises(ModelError, match="a ReLU can't be equalised"):
        Equalised(nn.ReLU())


@pytest.mark.parametrize(
    "module",
    [GANDiscriminator(3, 8, (4, 3)), DCGANDiscriminator(3, 8, 2, 3), ProjectionDiscriminator(3, 8, 2, 2, 4)],
    ids=named,
)
def test_discriminators_score_each_image_alone(module: nn.Module, assert_close: Compare) -> None:
    module.eval()
    extra = (one_hot(torch.tensor([1, 3, 0]), 4),) if isinstance(module, ProjectionDiscriminator) else ()
    images = torch.randn(3, 3, 8, 8)
    scores = module(images, *extra)
    assert scores.shape == (3,)
    assert_close(module(images[1:2], *(x[1:2] for x in extra)), scores[1:2], max_abs=1e-5)


@pytest.mark.parametrize("size", [28, 29, 31, 32, 17])
def test_classifier_scores_and_tells_its_size(size: int) -> None:
    module = randomized(Classifier(channels=2, size=size, classes=4, features=(3, 2), hidden=(5, 6)))
    image = torch.rand(3, 2, size, size)
    assert module(image).shape == (3, 4)
    assert module.features(image).shape == (3, 6)
    found = infer(module.state_dict(), {"hyper_parameters": f'{{"size": {size}}}'})
    assert found.inputs == {"image": (2, size, size)}
    assert torch.equal(build(found, module.state_dict())(image), module(image))
