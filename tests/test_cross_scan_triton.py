"""The cross-scan and the cross-merge in Triton, interpreted: PyTorch's, number for number."""

import pytest
import torch
from triton_tools import fenced, interpreted, shuffle_programs

from minivmamba import cross_merge, cross_scan
from minivmamba.kernels import cross_scan_triton as kernels
from minivmamba.kernels.cross_scan_triton import cross_merge_triton, cross_scan_triton

# A tile is 32 × 32: one, parts of one, several, and rows and columns alone.
SIZES = [(1, 1), (2, 3), (1, 40), (40, 1), (32, 32), (33, 31), (7, 65)]


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_scan_is_the_one_of_pytorch(size, dtype):
    x = (100 * torch.randn(2, 3, *size)).to(dtype)
    assert torch.equal(cross_scan_triton(x), cross_scan(x))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_merge_is_the_one_of_pytorch(size, dtype):
    """To the last bit: it adds in the same order."""
    ys = torch.randn(2, 4, 3, size[0] * size[1], dtype=dtype)
    assert torch.equal(cross_merge_triton(ys, *size), cross_merge(ys, *size))


@interpreted
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_they_are_adjoint(size):
    """⟨scan(x), y⟩ = ⟨x, merge(y)⟩, exact for whole numbers: each is the other's backward pass."""
    x = torch.randint(-9, 10, (2, 3, *size)).double()
    y = torch.randint(-9, 10, (2, 4, 3, size[0] * size[1])).double()
    assert (cross_scan_triton(x) * y).sum() == (x * cross_merge_triton(y, *size)).sum()


@interpreted
def test_any_strides():
    x = torch.randn(2, 5, 7, 3).permute(0, 3, 1, 2)
    assert torch.equal(cross_scan_triton(x), cross_scan(x))
    flipped = x.transpose(2, 3)
    assert torch.equal(cross_scan_triton(flipped), cross_scan(flipped))
    ys = torch.randn(2, 35, 4, 3).permute(0, 2, 3, 1)
    assert torch.equal(cross_merge_triton(ys, 5, 7), cross_merge(ys, 5, 7))
    one = ys[:, :1].expand_as(ys)
    assert torch.equal(cross_merge_triton(one, 5, 7), cross_merge(one, 5, 7))


@interpreted
def test_nothing_in_an_empty_batch():
    assert cross_scan_triton(torch.ones(0, 3, 2, 2)).shape == (0, 4, 3, 4)
    assert cross_merge_triton(torch.ones(0, 4, 3, 4), 2, 2).shape == (0, 3, 2, 2)


@interpreted
@pytest.mark.parametrize("size", [(5, 7), (33, 31)], ids=str)
def test_poison_around_every_buffer(size):
    H, W = size
    # Rows of the map, and sequences, with NaN after each.
    x = fenced((2, 3, H, W), stride=(3 * H * (W + 2), H * (W + 2), W + 2, 1))
    ys = fenced((2, 4, 3, H * W), stride=(12 * (H * W + 3), 3 * (H * W + 3), H * W + 3, 1))
    kernels.launch(kernels.cross_scan_kernel, x.tensor.normal_(), ys.tensor)
    ys.assert_untouched()
    assert torch.equal(ys.tensor, cross_scan(x.tensor))
    x.tensor.fill_(torch.nan)
    kernels.launch(kernels.cross_merge_kernel, x.tensor, ys.tensor.normal_())
    x.assert_untouched()
    assert torch.equal(x.tensor, cross_merge(ys.tensor, H, W))


@interpreted
def test_the_order_of_programs_does_not_matter(monkeypatch):
    shuffle_programs(monkeypatch, seed=0)
    x = torch.randn(2, 3, 33, 40)
    assert torch.equal(cross_scan_triton(x), cross_scan(x))
    ys = torch.randn(2, 4, 3, 33 * 40)
    assert torch.equal(cross_merge_triton(ys, 33, 40), cross_merge(ys, 33, 40))
