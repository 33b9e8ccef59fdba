"""AdaIN's mathematics (paper §5, Eq. 8, 14, 15) as properties."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stylize_batch.model.adain import EPSILON, Statistics, adain, moments, statistics

seeds = st.integers(0, 2**31 - 1)
sides = st.integers(2, 9)
alphas = st.floats(0, 1, width=32)


def features(seed: int, height: int = 6, width: int = 5, count: int = 2, channels: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(count, channels, 1, 1, generator=generator) * 5 + 0.5
    shift = torch.randn(count, channels, 1, 1, generator=generator) * 3
    return torch.randn(count, channels, height, width, generator=generator) * spread + shift


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@given(seeds, seeds, sides, sides)
def test_output_has_the_mean_and_deviation_of_the_style(
    content: int, style: int, height: int, width: int
) -> None:
    x, y = features(content, height, width), features(style, 7, 4)
    found = statistics(adain(statistics(x), statistics(y)).apply(x))
    expected = statistics(y)
    assert_close(found.mean, expected.mean)
    # ε stands under the root of the content's σ: a tiny shrink, bounded by ε/2 relative to the variance.
    slack = float((EPSILON / x.var((2, 3), correction=0)).max())
    assert_close(found.std, expected.std, 1e-3 + slack)


@given(seeds, seeds, st.floats(0.1, 3))
def test_no_gain_is_above_its_bound_and_the_others_stay(content: int, style: int, bound: float) -> None:
    x, y = statistics(features(content)), statistics(features(style))
    free, bounded = adain(x, y), adain(x, y, max_gain=bound)
    assert torch.equal(bounded.scale, free.scale.clamp(max=bound))
    mapped = bounded.apply(x.mean[:, :, None, None])
    assert_close(mapped, y.mean[:, :, None, None])


@given(seeds, seeds)
def test_alpha_zero_is_exactly_the_identity(content: int, style: int) -> None:
    x = features(content)
    assert torch.equal(adain(statistics(x), statistics(features(style)), 0.0).apply(x), x)


@given(seeds, alphas)
def test_a_style_equal_to_the_content_changes_nothing(seed: int, alpha: float) -> None:
    x = features(seed)
    assert_close(adain(statistics(x), statistics(x), alpha).apply(x), x, 1e-5)


@given(seeds, seeds, st.floats(0.5, 4), st.floats(-5, 5))
def test_contrast_and_brightness_of_the_content_features_do_not_matter(
    content: int, style: int, contrast: float, brightness: float
) -> None:
    x, y = features(content), statistics(features(style))
    changed = contrast * x + brightness
    assert_close(adain(statistics(changed), y).apply(changed), adain(statistics(x), y).apply(x), 5e-3)


@given(seeds, seeds, alphas)
def test_alpha_blends_the_features_linearly(content: int, style: int, alpha: float) -> None:
    x, y = features(content), statistics(features(style))
    blended = (1 - alpha) * x + alpha * adain(statistics(x), y).apply(x)
    assert_close(adain(statistics(x), y, alpha).apply(x), blended, 1e-4)


def test_alpha_may_differ_from_sample_to_sample() -> None:
    x, y = features(1), statistics(features(2))
    mixed = adain(statistics(x), y, torch.tensor([0.0, 1.0])).apply(x)
    assert torch.equal(mixed[0], x[0])
    assert torch.equal(mixed[1], adain(statistics(x), y).apply(x)[1])


@given(seeds, st.lists(st.floats(0.1, 1), min_size=1, max_size=4))
def test_interpolated_statistics_equal_the_blend_of_single_styles(seed: int, weights: list[float]) -> None:
    shares = torch.tensor(weights) / sum(weights)
    x = features(seed, count=1)
    styles = statistics(features(seed + 1, count=len(weights)))
    singles = [
        adain(statistics(x), Statistics(styles.mean[k : k + 1], styles.std[k : k + 1])).apply(x)
        for k in range(len(weights))
    ]
    expected = sum(
        (share * single for share, single in zip(shares, singles, strict=True)), torch.zeros_like(x)
    )
    blended = Statistics((shares @ styles.mean)[None], (shares @ styles.std)[None])
    assert_close(adain(statistics(x), blended).apply(x), expected)


def test_a_constant_channel_gives_finite_values() -> None:
    x = torch.full((1, 3, 4, 4), 2.0)
    assert adain(statistics(x), statistics(features(3, count=1, channels=3))).apply(x).isfinite().all()


def test_half_precision_keeps_its_digits_on_flat_contents() -> None:
    x = features(5, count=1) * 1e-3 + 2
    target, y = adain(statistics(x), statistics(features(6, count=1))), x.half()
    assert target.scale.max() > 100
    expected = target.apply(y.float())
    assert (target.apply(y).float() - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_statistics_are_float32_whatever_the_features_are() -> None:
    found = statistics(features(4).half())
    assert found.mean.dtype == found.std.dtype == torch.float32


def test_statistics_of_sixteen_bits_are_those_of_their_numbers_and_so_is_the_gradient() -> None:
    torch.manual_seed(3)
    rough = torch.randn(2, 5, 70, 90).bfloat16().requires_grad_()
    fine = rough.detach().float().requires_grad_()
    for features in (rough, fine):
        mean, std = statistics(features)
        (mean.square().sum() + std.sum()).backward()
    assert all(torch.equal(*pair) for pair in zip(statistics(rough), statistics(fine), strict=True))
    assert rough.grad is not None
    assert fine.grad is not None
    assert torch.equal(rough.grad, fine.grad.bfloat16())


@given(seeds, st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_statistics_have_the_gradient_of_their_definition(seed: int, layout: torch.memory_format) -> None:
    x = features(seed).to(memory_format=layout).requires_grad_()
    by_mean, by_std = features(seed + 1)[..., 0, 0], features(seed + 2)[..., 0, 0]
    found = statistics(x)
    (gradient,) = torch.autograd.grad((found.mean * by_mean + found.std * by_std).sum(), x)
    variance, mean = torch.var_mean(x.double(), (2, 3), correction=0)
    (expected,) = torch.autograd.grad((mean * by_mean + (variance + EPSILON).sqrt() * by_std).sum(), x)
    assert_close(gradient, expected, 1e-5)


def test_a_region_has_the_unbiased_variance_of_its_positions() -> None:
    features = torch.randn(1, 3, 4, 5)
    inside = torch.zeros(1, 1, 4, 5)
    inside[..., :3, 1:4] = 1
    found = moments(features, inside).statistics(1)
    expected = features[..., :3, 1:4].flatten(2).var(2, correction=1)
    torch.testing.assert_close(found.std, (expected + EPSILON).sqrt())
    inside[..., 1:, :] = 0
    inside[..., 2:] = 0
    single = moments(features, inside).statistics(1)
    torch.testing.assert_close(single.std, torch.full((1, 3), EPSILON).sqrt())
