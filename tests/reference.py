"""SS2D and the first VMamba, written a second time from the published description only.

This file shares no code with the package, and nobody read the package while writing it: NumPy
in float64, one image at a time, one pixel after another. A route is a list of (row, col)
coordinates, and a scan walks along that list, so nothing here flips, transposes or reshapes a
map. It is slow and meant to be: whatever the package does for speed is absent.

`weights` is a state dict whose tensors have become NumPy arrays. Maps are channels last:

    x      (H, W, C)      a map of C channels
    u      (H, W, d)      what the scans read, d = d_inner
    delta  (d,)           step size of each channel at one pixel
    A      (d, N)         continuous-time decay rates, one set per route, N = d_state
    B, C   (N,)           input and output vectors at one pixel
    D      (d,)           skip weight, one set per route
    h      (d, N)         state
"""

import numpy as np

LAYER_NORM_EPS = 1e-5


def sub_weights(weights, prefix):
    """The entries below `prefix.`, with the prefix taken off."""
    start = prefix + "."
    return {key[len(start) :]: value for key, value in weights.items() if key.startswith(start)}


# Elementary layers


def silu(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


def linear(x, weights):
    """(..., in) -> (..., out); the weight is stored (out, in), a bias may be absent."""
    return x @ weights["weight"].T + weights.get("bias", 0)


def layer_norm(x, weights):
    """Normalise the last axis with the biased variance."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + LAYER_NORM_EPS) * weights["weight"] + weights["bias"]


def depthwise_conv3x3(x, weights):
    """(H, W, d) -> (H, W, d): each channel with its own 3x3 filter, zeros outside the map."""
    height, width, _ = x.shape
    out = np.zeros_like(x) + weights["bias"]
    for row, col in row_major(height, width):
        for i in range(3):
            for j in range(3):
                r, c = row + i - 1, col + j - 1
                if 0 <= r < height and 0 <= c < width:
                    out[row, col] += weights["weight"][:, 0, i, j] * x[r, c]
    return out


# The four routes, as the coordinates they visit


def row_major(height, width):
    return [(row, col) for row in range(height) for col in range(width)]


def column_major(height, width):
    return [(row, col) for col in range(width) for row in range(height)]


def row_major_backwards(height, width):
    return [(row, col) for row in range(height - 1, -1, -1) for col in range(width - 1, -1, -1)]


def column_major_backwards(height, width):
    return [(row, col) for col in range(width - 1, -1, -1) for row in range(height - 1, -1, -1)]


ROUTES = (row_major, column_major, row_major_backwards, column_major_backwards)


# SS2D


def route_weights(weights, k):
    """What belongs to route k; A_logs and Ds hold the routes one below the other."""
    d_inner = weights["dt_projs_weight"].shape[1]
    rows = slice(k * d_inner, (k + 1) * d_inner)
    return {
        "x_proj": weights["x_proj_weight"][k],  # (R + 2N, d)
        "dt_proj": weights["dt_projs_weight"][k],  # (d, R)
        "dt_bias": weights["dt_projs_bias"][k],  # (d,)
        "A": -np.exp(weights["A_logs"][rows]),  # (d, N)
        "D": weights["Ds"][rows],  # (d,)
    }


def selection(u, route):
    """The pixel u (d,) chooses its own delta (d,), B (N,) and C (N,)."""
    dt_rank = route["dt_proj"].shape[1]
    d_state = route["A"].shape[1]
    low_rank, B, C = np.split(route["x_proj"] @ u, [dt_rank, dt_rank + d_state])
    delta = softplus(route["dt_proj"] @ low_rank + route["dt_bias"])
    return delta, B, C


def scan_step(h, u, route):
    """One pixel: h <- exp(delta A) h + delta B u, then y = C h + D u."""
    delta, B, C = selection(u, route)
    h = np.exp(delta[:, None] * route["A"]) * h + (delta * u)[:, None] * B
    return h, h @ C + route["D"] * u


def four_scans(u, weights):
    """(H, W, d) -> (H, W, d): every route adds its output at the pixel it stands on."""
    height, width, _ = u.shape
    y = np.zeros_like(u)
    for k, coordinates in enumerate(ROUTES):
        route = route_weights(weights, k)
        h = np.zeros_like(route["A"])
        for row, col in coordinates(height, width):
            h, y_pixel = scan_step(h, u[row, col], route)
            y[row, col] += y_pixel
    return y


def ss2d(x, weights):
    """(H, W, C) -> (H, W, C)."""
    d_inner = weights["out_norm.weight"].shape[0]
    xz = linear(x, sub_weights(weights, "in_proj"))
    x, z = xz[..., :d_inner], xz[..., d_inner:]
    u = silu(depthwise_conv3x3(x, sub_weights(weights, "conv2d")))
    y = layer_norm(four_scans(u, weights), sub_weights(weights, "out_norm"))
    return linear(y * silu(z), sub_weights(weights, "out_proj"))


# The model around it


def patch_embed(image, weights):
    """(3, H, W) -> (H // p, W // p, C): one linear map per p x p patch; the rest is lost."""
    weight = weights["proj.weight"]  # (C, 3, p, p)
    p = weight.shape[-1]
    height, width = image.shape[1] // p, image.shape[2] // p
    x = np.empty((height, width, weight.shape[0]))
    for row, col in row_major(height, width):
        patch = image[:, row * p : (row + 1) * p, col * p : (col + 1) * p]
        x[row, col] = (weight * patch).sum(axis=(1, 2, 3)) + weights["proj.bias"]
    return layer_norm(x, sub_weights(weights, "norm"))


def patch_merging(x, weights):
    """(H, W, C) -> (ceil(H / 2), ceil(W / 2), 2C); pixels beyond the bottom or right are zero."""
    height, width, channels = x.shape
    merged = np.zeros(((height + 1) // 2, (width + 1) // 2, 4 * channels))
    for row, col in row_major(*merged.shape[:2]):
        for corner, (i, j) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
            r, c = 2 * row + i, 2 * col + j
            if r < height and c < width:
                merged[row, col, corner * channels : (corner + 1) * channels] = x[r, c]
    return linear(
        layer_norm(merged, sub_weights(weights, "norm")), sub_weights(weights, "reduction")
    )


def block(x, weights):
    normed = layer_norm(x, sub_weights(weights, "ln_1"))
    return x + ss2d(normed, sub_weights(weights, "self_attention"))


def numbered(weights, name):
    """`weights` below name.0, name.1, ... in order."""
    parts = []
    while part := sub_weights(weights, f"{name}.{len(parts)}"):
        parts.append(part)
    return parts


def vssm(image, weights):
    """(3, H, W) -> the logits (num_classes,) and the list of stage maps (C, H, W).

    A stage map is what leaves the last block of the stage, before patch merging and norm.
    """
    x = patch_embed(image, sub_weights(weights, "patch_embed"))
    stage_maps = []
    for layer in numbered(weights, "layers"):
        for block_weights in numbered(layer, "blocks"):
            x = block(x, block_weights)
        stage_maps.append(np.moveaxis(x, -1, 0))
        if merging := sub_weights(layer, "downsample"):
            x = patch_merging(x, merging)
    pooled = layer_norm(x, sub_weights(weights, "norm")).mean(axis=(0, 1))
    return linear(pooled, sub_weights(weights, "head")), stage_maps
