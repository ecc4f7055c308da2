"""The five small backbones: of one size, for images of any size, and a control that sees little."""

import pytest
import torch
from torchvision.models import VisionTransformer

from minivmamba.receptive_field import effective_receptive_field, last_map
from minivmamba.small_models import FIVE, SmallDeiT, small_field_cnn


def built(name, classes=10):
    torch.manual_seed(0)
    return FIVE[name](classes).eval()


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_they_have_one_size():
    sizes = [size(built(name)) for name in FIVE]
    middle = (max(sizes) + min(sizes)) / 2
    assert max(sizes) <= 500_000
    assert all(abs(found - middle) <= 0.05 * middle for found in [*sizes, size(small_field_cnn())])


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("shape", [(64, 64), (96, 96), (64, 128)])
def test_they_take_any_size(name, shape):
    model, stride = built(name), 8 if name == "DeiT" else 16
    images = torch.randn(2, 3, *shape)
    with torch.no_grad():
        assert model(images).shape == (2, 10)
        features = last_map(model)(images)
    assert features.shape[0] == 2 and features.shape[2:] == (shape[0] // stride, shape[1] // stride)


@pytest.mark.parametrize("name", FIVE)
def test_every_parameter_learns(name):
    model = built(name).train()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_deit_at_its_own_size_is_torchvisions():
    model, images = SmallDeiT(10).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.conv_proj(images).flatten(2).mT
        theirs = model.encoder(torch.cat([model.class_token.expand(2, -1, -1), tokens], 1))
        torch.testing.assert_close(model.heads(theirs[:, 0]), model(images))
    assert isinstance(model, VisionTransformer)


@torch.no_grad()
def test_positions_keep_their_place_at_another_size():
    model = SmallDeiT(10)
    ramp = torch.arange(8.0).repeat_interleave(8)  # rows of the grid
    model.encoder.pos_embedding.data[0, 1:] = ramp[:, None]
    grid = model.positions(16, 12)[0, 1:].unflatten(0, (16, 12))[..., 0]
    assert grid.shape == (16, 12) and torch.allclose(grid, grid[:, :1], atol=1e-5)
    assert (grid[1:, 0] > grid[:-1, 0]).all()


def test_the_control_sees_twenty_pixels():
    model = small_field_cnn().eval()
    field = effective_receptive_field(model.last_map, torch.randn(4, 3, 64, 64))
    rows, columns = (field.sum(axis).nonzero().flatten() for axis in (1, 0))
    for line in (rows, columns):
        assert 12 < len(line) <= 20 and line[-1] - line[0] < 20
