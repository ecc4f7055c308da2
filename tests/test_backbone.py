"""Stage maps for other models."""

import pytest
import torch
from torch import nn

from minivmamba import VSSM, Backbone, VSSMv2


def model(build=VSSM):
    torch.manual_seed(0)
    return build([1, 1, 1, 1], 8, num_classes=3).eval()


@pytest.mark.parametrize("build", [VSSM, VSSMv2])
def test_maps_channels_and_strides(build):
    backbone = Backbone(model(build))
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert backbone.channels == [8, 16, 32, 64] and backbone.strides == [4, 8, 16, 32]
    for features, C, s in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert features.shape == (2, C, 64 // s, 96 // s)
        # A fresh LayerNorm: the channels of every pixel have mean 0 and variance 1. Its eps of
        # 1e-5 is seen where a pixel varies little.
        torch.testing.assert_close(features.mean(1), torch.zeros(()).expand_as(features[:, 0]),
                                   atol=1e-5, rtol=0)  # fmt: skip
        assert ((features.var(1, unbiased=False) - 1).abs() < 0.02).all()


def test_without_norms_the_maps_are_those_of_the_model():
    net = model()
    images = torch.randn(1, 3, 32, 64)
    second, last = Backbone(net, stages=(1, 3), norm=False)(images)
    features = net.forward_features(images)
    assert torch.equal(second, features[1]) and torch.equal(last, features[3])
    assert list(Backbone(net, norm=False).state_dict()) == [f"model.{k}" for k in net.state_dict()]


def test_norms_are_trained_and_named_by_stage():
    backbone = Backbone(model(), stages=(0, 2))
    norms = {name for name, m in backbone.named_children() if isinstance(m, nn.LayerNorm)}
    assert norms == {"outnorm0", "outnorm2"}
    sum(m.square().mean() for m in backbone(torch.randn(1, 3, 32, 32))).backward()
    assert all(getattr(backbone, name).bias.grad.abs().sum() > 0 for name in norms)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stages": ()}, ValueError, r"stages: expected some of 0 to 3 in growing order, got \[\]"),
        ({"stages": (0, 4)}, ValueError, r"stages: expected some of 0 to 3 .*got \[0, 4\]"),
        ({"stages": (1, 0)}, ValueError, "in growing order"),
        ({"stages": (-1,)}, ValueError, "stages: expected an integer of at least 0, got -1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Backbone(model(), **arguments)
    with pytest.raises(TypeError, match="model: expected a VSSM or VSSMv2, got Linear"):
        Backbone(nn.Linear(1, 1))
