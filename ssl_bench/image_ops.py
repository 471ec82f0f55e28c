"""Image operations on a batch in which every sample has parameters of its own.

Shapes: B samples, C channels (1 or 3), H and W pixels of the input, S pixels of a square output.
Images are float32 in [0, 1] unless said otherwise, and no operation changes its arguments.
Nothing here loops over samples or makes the host wait for the device. Each operation computes
what torchvision's operation of the same name computes for one float image.
"""

from __future__ import annotations

import torch
from torch import Tensor

INTERPOLATIONS = ("bilinear", "bicubic")
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
        raise ValueError(f"interpolation must be one of {INTERPOLATIONS}, not {interpolation!r}")
    images_BCHW = to_float(images_BCHW)
    batch, channels, height, width = images_BCHW.shape
    top_B, left_B, box_height_B, box_width_B = boxes_B4.to(torch.float32).unbind(1)

    row_S = torch.arange(size, device=images_BCHW.device, dtype=torch.float32)
    column_BS = torch.where(flip_B[:, None], row_S.flip(0), row_S)
    vertical_BSH = _resampling(row_S[None], top_B, box_height_B, size, height, interpolation)
    horizontal_BSW = _resampling(column_BS, left_B, box_width_B, size, width, interpolation)

    rows_BNW = images_BCHW.flatten(1, 2)
    narrow_BCHS = (rows_BNW @ horizontal_BSW.mT).view(batch, channels, height, size)
    return (vertical_BSH[:, None] @ narrow_BCHS).clamp_(0, 1)


def _resampling(
    output_BS: Tensor, start_B: Tensor, length_B: Tensor, size: int, pixels: int, interpolation: str
) -> Tensor:
    """Weights ``(B, S, pixels)`` of the input's pixels in each of the output's pixels."""
    scale_B1 = (length_B / size)[:, None]
    centre_BS = start_B[:, None] + (output_BS + 0.5) * scale_B1
    pixel_N = torch.arange(pixels, device=start_B.device) + 0.5
    distance_BSN = (pixel_N - centre_BS[..., None]).div_(scale_B1.clamp(min=1)[..., None]).abs_()
    # Sums of one-sided powers: the textbook's piecewise forms, without a branch per pixel.
    inner_BSN = (1 - distance_BSN).clamp_(min=0)
    if interpolation == "bilinear":
        weights_BSN = inner_BSN
    else:
        outer_BSN = distance_BSN.neg_().add_(2).clamp_(min=0)
        weights_BSN = (outer_BSN - 1).mul_(0.5).mul_(outer_BSN).mul_(outer_BSN)
        weights_BSN += (1 - 2 * inner_BSN).mul_(inner_BSN).mul_(inner_BSN)
    offset_BN = pixel_N - start_B[:, None]
    weights_BSN *= ((offset_BN > 0) & (offset_BN < length_B[:, None]))[:, None]
    return weights_BSN.div_(weights_BSN.sum(-1, keepdim=True))


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
    factor_B3 = torch.stack([brightness_B, contrast_B, saturation_B], 1)
    is_hue_B4 = order_B4 == HUE
    hue_turn_B = is_hue_B4.int().argmax(1)
    blend_order_B3 = order_B4.gather(1, is_hue_B4.int().argsort(dim=1, stable=True)[:, :3])

    def blend_in_turn(images_BCHW: Tensor, before_hue: bool) -> Tensor:
        # A factor of 1 skips a sample's turn: cheaper than gathering the samples whose turn it is.
        for turn in range(3):
            kind_B = blend_order_B3[:, turn]
            own_factor_B = factor_B3.gather(1, kind_B[:, None])[:, 0]
            is_now_B = (turn < hue_turn_B) == before_hue
            images_BCHW = _blend(images_BCHW, kind_B, torch.where(is_now_B, own_factor_B, 1.0))
        return images_BCHW

    images_BCHW = blend_in_turn(images_BCHW, before_hue=True)
    images_BCHW = adjust_hue(images_BCHW, hue_B)
    return blend_in_turn(images_BCHW, before_hue=False)


def _blend(images_BCHW: Tensor, kind_B: Tensor, factor_B: Tensor) -> Tensor:
    """Move away from black, from the mean grey or from the grey image: one of them per sample."""
    grey_B1HW = luma(images_BCHW)
    mean_B111 = grey_B1HW.mean((1, 2, 3), keepdim=True)
    mean_B111 = mean_B111 * _per_sample(kind_B == CONTRAST)
    anchor_B1HW = grey_B1HW * _per_sample(kind_B == SATURATION) + mean_B111
    return torch.lerp(anchor_B1HW, images_BCHW, _per_sample(factor_B)).clamp_(0, 1)


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
    """Brightness as ITU-R 601 weighs it: ``(B, 1, H, W)``; one channel is returned as it is.

    Raises:
        ValueError: the images have neither 1 nor 3 channels.
    """
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
    rows_BNW = images_BCHW.flatten(1, 2)
    return vertical_BHH[:, None] @ (rows_BNW @ horizontal_BWW.mT).view_as(images_BCHW)


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
