"""Image operations on a batch in which every sample has parameters of its own.

Shapes: B samples, C channels (1 or 3), H and W pixels of the input, S pixels of a square output.
Images are float32 in [0, 1] unless said otherwise, and no operation changes its arguments.
Nothing here loops over samples or makes the host wait for the device. Each operation computes
what torchvision's operation of the same name computes for one float image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

INTERPOLATIONS = {"bilinear": 1, "bicubic": 2}
"""Filters by name: how many of the coarser image's pixels they reach on either side."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def resized_crop(
    images_BCHW: Tensor, boxes_B4: Tensor, flip_B: Tensor, size: int, interpolation: str
) -> Tensor:
    """Cut a box out of each image, resize it with antialiasing and mirror it if asked.

    Both directions are a matrix product per sample. The weights are Pillow's: the filter widens
    when it shrinks, and sees no pixel outside the box. Unlike Pillow, and torchvision on uint8,
    nothing is rounded and overshoot is clamped once, at the end.

    Args:
        images_BCHW: uint8 in [0, 255] or float32 in [0, 1].
        boxes_B4: top, left, height and width in pixels, within the image; any real dtype.
        flip_B: bool, whether to mirror left and right.
        size: height and width of the output in pixels.
        interpolation: ``"bilinear"`` or ``"bicubic"`` (Keys' cubic with a = -0.5).

    Returns:
        float32 ``(B, C, size, size)`` in [0, 1].

    Raises:
        ValueError: the interpolation is unknown.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {[*INTERPOLATIONS]}, not {interpolation!r}")
    batch, channels, height, width = images_BCHW.shape
    row_S = torch.arange(size, device=images_BCHW.device) + 0.5
    column_BS = torch.where(flip_B[:, None], row_S.flip(0), row_S)
    positions_2BS = torch.stack([row_S.expand_as(column_BS), column_BS])
    starts_2B, lengths_2B = boxes_B4.to(torch.float32).mT.reshape(2, 2, batch)
    weights_2BSN = _resampling(
        positions_2BS, starts_2B, lengths_2B, max(height, width), interpolation
    )
    vertical_BSH, horizontal_BSW = weights_2BSN[0, ..., :height], weights_2BSN[1, ..., :width]

    # With the channels inside the rows, each direction is one product for an image.
    images_BHCW = images_BCHW.transpose(1, 2)
    images_BHCW = images_BHCW.to(torch.float32, memory_format=torch.contiguous_format)
    tall_BSN = vertical_BSH @ images_BHCW.reshape(batch, height, channels * width)
    views_BNS = tall_BSN.view(batch, size * channels, width) @ horizontal_BSW.mT
    if images_BCHW.dtype == torch.uint8:
        views_BNS.div_(255)
    return views_BNS.clamp_(0, 1).view(batch, size, channels, size).transpose(1, 2)


def _resampling(
    positions_2BS: Tensor, starts_2B: Tensor, lengths_2B: Tensor, pixels: int, interpolation: str
) -> Tensor:
    """Weights ``(2, B, S, pixels)`` of the input's pixels in the output's, in both directions.

    Of K neighbours only, the most that a filter can reach: the others have none.
    """
    size, reach = positions_2BS.shape[-1], INTERPOLATIONS[interpolation]
    scale_2B1 = (lengths_2B / size)[..., None]
    width_2B1 = scale_2B1.clamp(min=1)
    centre_2BS = starts_2B[..., None] + positions_2BS * scale_2B1
    first_2BS = (centre_2BS - reach * width_2B1 + 0.5).floor()
    neighbours = math.ceil(2 * reach * max(1, pixels / size)) + 1
    pixel_2BSK = first_2BS[..., None] + torch.arange(neighbours, device=positions_2BS.device)
    distance_2BSK = (pixel_2BSK + 0.5).sub_(centre_2BS[..., None]).div_(width_2B1[..., None]).abs_()
    # Sums of one-sided powers: the textbook's piecewise forms, without a branch per pixel.
    inner_2BSK = (1 - distance_2BSK).clamp_(min=0)
    if interpolation == "bilinear":
        weights_2BSK = inner_2BSK
    else:
        outer_2BSK = distance_2BSK.neg_().add_(2).clamp_(min=0)
        weights_2BSK = (outer_2BSK - 1).mul_(0.5).mul_(outer_2BSK).mul_(outer_2BSK)
        weights_2BSK += (1 - 2 * inner_2BSK).mul_(inner_2BSK).mul_(inner_2BSK)
    offset_2BSK = pixel_2BSK - starts_2B[..., None, None]
    weights_2BSK *= (offset_2BSK >= 0) & (offset_2BSK < lengths_2B[..., None, None])
    weights_2BSK /= weights_2BSK.sum(-1, keepdim=True)
    weights_2BSN = weights_2BSK.new_zeros(*weights_2BSK.shape[:-1], pixels)
    return weights_2BSN.scatter_add_(-1, pixel_2BSK.long().clamp_(0, pixels - 1), weights_2BSK)


def color_jitter(
    images_BCHW: Tensor,
    brightness_B: Tensor,
    contrast_B: Tensor,
    saturation_B: Tensor,
    hue_B: Tensor,
    order_B4: Tensor,
) -> Tensor:
    """Change brightness, contrast, saturation and hue, in an order of each sample's own.

    Args:
        images_BCHW: float32 in [0, 1].
        brightness_B, contrast_B, saturation_B: factors >= 0; 1 leaves the image as it is.
        hue_B: shift of the hue in turns, in [-0.5, 0.5]; 0 leaves the image as it is, to rounding.
        order_B4: int64, a permutation of BRIGHTNESS, CONTRAST, SATURATION and HUE per sample.

    Returns:
        float32 ``(B, C, H, W)`` in [0, 1]. Of an image of one channel, brightness and contrast
        alone change.
    """
    is_hue_B4 = order_B4 == HUE
    hue_turn_B = is_hue_B4.int().argmax(1)
    kind_B3 = order_B4.gather(1, is_hue_B4.int().argsort(dim=1, stable=True)[:, :3])
    factor_B3 = torch.stack([brightness_B, contrast_B, saturation_B], 1).gather(1, kind_B3)
    if images_BCHW.device.type != "cpu":
        # To select samples, a host would have to wait: a factor of 1 skips a sample's turn.
        is_before_B3 = torch.arange(3, device=order_B4.device) < hue_turn_B[:, None]
        images_BCHW = _blend(images_BCHW, kind_B3, torch.where(is_before_B3, factor_B3, 1.0))
        images_BCHW = adjust_hue(images_BCHW, hue_B)
        return _blend(images_BCHW, kind_B3, torch.where(is_before_B3, 1.0, factor_B3))
    jittered_BCHW = torch.empty_like(images_BCHW)
    for turn in range(4):
        own_A = (hue_turn_B == turn).nonzero()[:, 0]
        kind_A3, factor_A3 = kind_B3[own_A], factor_B3[own_A]
        own_ACHW = _blend(images_BCHW[own_A], kind_A3[:, :turn], factor_A3[:, :turn])
        own_ACHW = adjust_hue(own_ACHW, hue_B[own_A])
        jittered_BCHW[own_A] = _blend(own_ACHW, kind_A3[:, turn:], factor_A3[:, turn:])
    return jittered_BCHW


def _blend(images_BCHW: Tensor, kind_BT: Tensor, factor_BT: Tensor) -> Tensor:
    """Move away from black, from the mean grey or from the grey image: one per sample and turn."""
    for kind_B, factor_B in zip(kind_BT.unbind(1), factor_BT.unbind(1), strict=True):
        grey_B1HW = luma(images_BCHW)
        mean_B111 = grey_B1HW.mean((1, 2, 3), keepdim=True) * _per_sample(kind_B == CONTRAST)
        anchor_B1HW = (grey_B1HW * _per_sample(kind_B == SATURATION)).add_(mean_B111)
        images_BCHW = torch.lerp(anchor_B1HW, images_BCHW, _per_sample(factor_B)).clamp_(0, 1)
    return images_BCHW


def adjust_hue(images_BCHW: Tensor, hue_B: Tensor) -> Tensor:
    """Turn the hue of float32 RGB images in [0, 1] by ``hue_B`` turns; grey stays grey.

    The way to HSV and back, with the hue in sixths of a turn: each channel lies between the
    pixel's least and greatest value, at a height that is a trapezium of the hue. An image of one
    channel is returned as it is.
    """
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    red, green, blue = images_BCHW.unbind(1)
    greatest, least = images_BCHW.amax(1), images_BCHW.amin(1)
    chroma = greatest - least
    red_leads = greatest == red
    green_leads = (greatest == green).logical_and_(~red_leads)
    is_red, is_green = red_leads.float(), green_leads.float()
    is_blue = 1 - is_red - is_green
    # Products with 0 and 1 take a third of the time of torch.where on a CPU.
    hue = (green - blue).mul_(is_red).addcmul_(blue - red, is_green).addcmul_(red - green, is_blue)
    hue.div_(chroma.clamp(min=1e-12)).add_(is_green, alpha=2).add_(is_blue, alpha=4)
    hue.add_(6 * hue_B[:, None, None]).remainder_(6)
    heights = [(hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()]
    return torch.stack(heights, 1).clamp_(0, 1).mul_(chroma[:, None]).add_(least[:, None])


def luma(images_BCHW: Tensor) -> Tensor:
    """Brightness as ITU-R 601 weighs it: ``(B, 1, H, W)``; one channel is returned as it is."""
    if images_BCHW.shape[1] == 1:
        return images_BCHW
    if images_BCHW.shape[1] != 3:
        raise ValueError(f"colour needs 1 or 3 channels, not {images_BCHW.shape[1]}")
    red, green, blue = images_BCHW.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def to_grayscale(images_BCHW: Tensor) -> Tensor:
    """Luma in every channel, the shape kept."""
    return luma(images_BCHW).expand_as(images_BCHW).contiguous()


def gaussian_blur(images_BCHW: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
    """Blur each image with a Gaussian of its own width, the border reflected.

    A matrix product per sample and direction: for images of up to about 100 pixels no slower than
    a depthwise convolution. Pillow, which MoCo's official code calls, approximates the Gaussian
    by box blurs and repeats the border instead of reflecting it.

    Args:
        images_BCHW: float32.
        sigma_B: standard deviations in pixels, > 0.
        radius: where the Gaussian is cut off, in pixels; three standard deviations are ample.
            No more than the image less one pixel is used.
    """
    height, width = images_BCHW.shape[2:]
    radius = min(radius, height - 1, width - 1)
    offset_K = torch.arange(-radius, radius + 1, device=images_BCHW.device)
    weights_BK = (-0.5 * (offset_K / sigma_B[:, None]) ** 2).softmax(1)
    vertical_BHH = _convolution(weights_BK, offset_K, height)
    horizontal_BWW = vertical_BHH if width == height else _convolution(weights_BK, offset_K, width)
    batch, channels = images_BCHW.shape[:2]
    rows_BHN = images_BCHW.transpose(1, 2).reshape(batch, height, channels * width)
    blurred_BNW = (vertical_BHH @ rows_BHN).view(
        batch, height * channels, width
    ) @ horizontal_BWW.mT
    return blurred_BNW.view(batch, height, channels, width).transpose(1, 2)


def _convolution(weights_BK: Tensor, offset_K: Tensor, pixels: int) -> Tensor:
    """Each kernel as a matrix ``(B, N, N)`` on a line of N pixels reflected at both ends."""
    last = pixels - 1
    pixel_N = torch.arange(pixels, device=offset_K.device)
    source_KN = last - (last - (offset_K[:, None] + pixel_N).abs()).abs()
    shift_KNN = (source_KN[..., None] == pixel_N).to(weights_BK.dtype)
    return (weights_BK @ shift_KNN.flatten(1)).view(-1, pixels, pixels)


def solarize(images_BCHW: Tensor, threshold: float) -> Tensor:
    """Invert the values that reach the threshold, as Pillow's ``ImageOps.solarize``."""
    return torch.where(images_BCHW >= threshold, 1 - images_BCHW, images_BCHW)


def to_float(images_BCHW: Tensor) -> Tensor:
    """uint8 in [0, 255] as float32 in [0, 1]; float32 is returned as it is."""
    if images_BCHW.dtype == torch.uint8:
        return images_BCHW.to(torch.float32).div_(255)
    return images_BCHW


def _per_sample(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]
