"""The masked image models: what they see, what they predict, what they promise to callers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from masked_dense import convolution, moved, norm, seen_at
from small import small_config

import greenjax
from greenjax.backbones.positions import sine_cosine_positions
from greenjax.planning import Plan


def random_mask(model, share, seed=0):
    units = model.grid.units
    count = max(1, round(share * units[0] * units[1]))
    return np.random.default_rng(seed).permutation(units[0] * units[1]).reshape(units) < count


def random_images(model, count=2, seed=0):
    shape = (count, model.grid.height, model.grid.width, len(model.mean))
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def green():
    return greenjax.build(small_config(), seed=0)


@pytest.fixture(scope="module")
def simmim():
    return greenjax.build(small_config(method="simmim"), seed=0)


@pytest.fixture(scope="module")
def green_twins():
    return greenjax.build(small_config("twins", model__depths=(2, 1)), seed=0)


@pytest.fixture(scope="module")
def simmim_twins():
    return greenjax.build(small_config("twins", model__depths=(2, 1), method="simmim"), seed=0)


@pytest.mark.parametrize("name", ["green", "simmim"])
def test_pixels_are_normalised_once_in_a_run_as_outside_of_one(name, request):
    model = request.getfixturevalue(name)
    shape = (2, model.grid.height, model.grid.width, len(model.mean))
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    visible = random_mask(model, 0.3)
    normal = ((images / 255 - model.mean) / model.std).astype(np.float32)
    expected = model(normal, visible)
    for found in (model(images, visible), model.for_files()(images, visible)):
        np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
        np.testing.assert_allclose(found.latent, expected.latent, atol=1e-5)


@pytest.mark.parametrize("name", ["green", "green_twins"])
def test_masked_pixels_reach_neither_the_latent_nor_its_gradient(name, request):
    green = request.getfixturevalue(name)
    visible = random_mask(green, 0.3)
    pixels = np.kron(visible, np.ones((green.grid.unit,) * 2, bool))[None, :, :, None]
    images = random_images(green)
    graphdef, params = nnx.split(green)
    projection = random_images(green, seed=3).ravel()

    def projected(params, images):
        latent = nnx.merge(graphdef, params)(images, visible).latent
        return (latent.ravel() * projection[: latent.size]).sum(), latent

    grads = jax.jit(jax.value_and_grad(projected, argnums=(0, 1), has_aux=True))
    first = grads(params, images)
    second = grads(params, np.where(pixels, images, random_images(green, seed=7)))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    image_gradient = np.asarray(first[1][1])
    assert (np.where(pixels, 0, image_gradient) == 0).all()
    assert (np.abs(np.where(pixels, image_gradient, 1)) > 0).all()


@pytest.mark.parametrize("name", ["green", "simmim", "simmim_twins"])
def test_with_everything_visible_loss_and_gradient_are_zero(name, request):
    model = request.getfixturevalue(name)
    graphdef, params = nnx.split(model)

    def loss(params, images):
        return nnx.merge(graphdef, params)(images, np.ones(model.grid.units, bool)).loss

    value, grads = jax.jit(jax.value_and_grad(loss))(params, random_images(model))
    assert value == 0
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["green", "simmim", "green_twins"])
def test_many_masks_are_one_call_a_mask(name, request):
    model = request.getfixturevalue(name)
    images = random_images(model, 4)
    masks = np.stack([random_mask(model, 0.4, seed) for seed in (1, 2)])
    together = model(images, masks)
    apart = [model(images[2 * i : 2 * i + 2], masks[i]) for i in range(2)]
    np.testing.assert_allclose(together.loss, np.mean([out.loss for out in apart]), rtol=1e-6)
    for i, x in enumerate(together.stages):
        np.testing.assert_allclose(x, np.concatenate([out.stages[i] for out in apart]), atol=1e-5)
    np.testing.assert_allclose(together.prediction, np.concatenate([o.prediction for o in apart]), atol=1e-5)


def test_shapes_and_raster_order(green):
    visible = random_mask(green, 0.4)
    out = green(random_images(green), visible)
    v, u = visible.sum(), visible.size
    assert out.prediction.shape == (2, u, green.grid.unit**2)
    assert out.latent.shape == (2, v, 16)
    assert [x.shape for x in out.stages] == [(2, 4 * v, 8), (2, v, 16)]
    # Coordinates put through the reordering come out sorted by row, then column.
    plan = Plan(np.flatnonzero(visible)[None], np.flatnonzero(~visible)[None], ())
    coordinates = green.grid.coordinates(0)[visible.ravel()].reshape(1, 1, -1, 2)
    (ordered,) = green._raster((jnp.asarray(coordinates),), plan)
    expected = np.argwhere(np.kron(visible, np.ones((2, 2), bool)))
    np.testing.assert_array_equal(ordered[0, 0], expected)


@pytest.mark.parametrize("family", ["swin", "twins", "convnextv2"])
def test_a_fusing_decoder_reads_the_sum_of_all_stages(family):
    """The first stage through a convolution, 2 x 2 with stride 2, and the last stage as it is, normed together."""
    model = moved(greenjax.build(small_config(family, decoder__fusion=True)))
    images, visible = random_images(model), random_mask(model, 0.4)
    out, (first,) = model(images, visible), model.decoder.fusion
    grid = np.zeros((2, *model.grid.shape(0), 8), np.float32)
    grid[:, seen_at(visible, 2)] = out.stages[0]
    kernel = first.kernel[...].reshape(2, 2, 8, 16).swapaxes(0, 1)  # members of a block stand column by column
    fused = convolution(grid, kernel, 0, stride=2, padding=0, groups=1)[:, visible] + out.stages[1]
    with jax.numpy_rank_promotion("allow"):
        params = {"scale": model.encoder.norm.scale[...], "bias": model.encoder.norm.bias[...]}
        expected = norm(fused + first.bias[...], params, model.config.model.norm_epsilon)
    np.testing.assert_allclose(out.latent, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["green", "green_twins"])
def test_dense_stages_are_the_features(name, request):
    green = request.getfixturevalue(name)
    images = random_images(green)
    out = green(images, np.ones(green.grid.units, bool))
    for tokens, feature in zip(out.stages, greenjax.features(green, images), strict=True):
        np.testing.assert_allclose(tokens, feature.reshape(tokens.shape), atol=1e-6)


def test_uint8_images_are_normalised(green):
    images = np.random.default_rng(0).integers(256, size=(2, 32, 32, 1)).astype(np.uint8)
    normalised = ((images / 255 - 0.3) / 0.4).astype(np.float32)
    visible = random_mask(green, 0.4)
    first, second = green(images, visible), green(normalised, visible)
    np.testing.assert_allclose(first.loss, second.loss, rtol=1e-5)
    np.testing.assert_allclose(first.prediction, second.prediction, atol=1e-5)


def test_loss_is_the_error_of_normalised_masked_units(green):
    """Recomputed in NumPy from the prediction, unit by unit."""
    images, visible = random_images(green), random_mask(green, 0.4)
    out = green(images, visible)
    side, errors = green.grid.unit, []
    for image, prediction in zip(images, np.asarray(out.prediction), strict=True):
        for unit, (row, column) in enumerate(np.ndindex(visible.shape)):
            if not visible[row, column]:
                pixels = image[row * side : (row + 1) * side, column * side : (column + 1) * side].ravel()
                target = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
                errors.append(np.square(prediction[unit] - target).mean())
    np.testing.assert_allclose(out.loss, np.mean(errors), rtol=1e-5)


def test_decoder_is_a_plain_transformer_over_units_in_raster_order(green):
    """The same tokens put on their places in the grid, decoded there by the same blocks, give the same prediction."""
    images, visible = random_images(green), random_mask(green, 0.4)
    out, decoder = green(images, visible), green.decoder
    tokens = np.tile(decoder.mask_token[...], (2, visible.size, 1))
    tokens[:, np.flatnonzero(visible)] = decoder.embed(out.latent)
    x = jnp.asarray(tokens + sine_cosine_positions(*green.grid.units, 16)[None])
    for block in decoder.blocks:
        x = block(x, None, None)
    np.testing.assert_allclose(out.prediction, decoder.head(decoder.norm(x)), atol=1e-5)


def test_positions_code_the_column_first():
    table = sine_cosine_positions(2, 3, 8)
    unit = 1 * 3 + 2  # row 1, column 2
    omega = np.array([1, 10000 ** (-1 / 2)])
    expected = np.concatenate([np.sin(2 * omega), np.cos(2 * omega), np.sin(omega), np.cos(omega)])
    np.testing.assert_allclose(table[unit], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((7, 8), bool), r"found bool \(7, 8\), expected bool \(8, 8\)"),
        (np.ones((8, 8), np.float32), "found float32"),
        (np.zeros((8, 8), bool), "at least 1"),
        (np.stack([np.ones((8, 8), bool), np.eye(8, dtype=bool)]), r"found \[8, 64\] visible units"),
        (np.ones((0, 8, 8), bool), r"found bool \(0, 8, 8\)"),
        (np.ones((3, 8, 8), bool), "found 3 masks, expected a divisor of the 2 images"),
    ],
)
def test_wrong_masks_are_named(green, mask, message):
    with pytest.raises(ValueError, match=message):
        green(random_images(green), mask)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), r"images: found shape \(2, 32, 32, 3\), expected \(b, h, w, c\)"),
        (np.zeros((32, 32, 1), np.float32), r"images: found shape \(32, 32, 1\)"),
        (np.zeros((0, 32, 32, 1), np.float32), r"images: found shape \(0, 32, 32, 1\)"),
        (np.zeros((2, 32, 32, 1), np.int32), "images: found int32, expected uint8"),
    ],
)
def test_wrong_images_are_named(green, images, message):
    with pytest.raises(ValueError, match=message):
        green(images, random_mask(green, 0.5))
    with pytest.raises(ValueError, match=message):
        greenjax.features(green, images)


def test_remat_changes_memory_only(green):
    images, visible = random_images(green), random_mask(green, 0.4)
    again = greenjax.build(small_config(model__remat=True), seed=0)

    def grads(model):
        graphdef, params = nnx.split(model)
        return jax.jit(jax.grad(lambda params: nnx.merge(graphdef, params)(images, visible).loss))(params)

    plain, rematerialised = (nnx.to_pure_dict(grads(model)) for model in (green, again))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, rematerialised)


@pytest.mark.parametrize(
    ("name", "changes"), [("green", {}), ("green_twins", dict(family="twins", model__depths=(2, 1)))], ids=str
)
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(name, changes, request):
    green = request.getfixturevalue(name)
    images, visible = random_images(green), random_mask(green, 0.4)
    half = greenjax.build(small_config(**changes, model__dtype="bfloat16"), seed=0)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    out = half(images, visible)
    assert out.latent.dtype == jnp.bfloat16
    assert out.loss.dtype == out.prediction.dtype == jnp.float32
    np.testing.assert_allclose(out.loss, green(images, visible).loss, rtol=0.02)


@pytest.mark.parametrize(
    "overrides",
    [
        dict(image_size=(48, 32), model__window=7),
        dict(image_size=(24, 40), model__patch=1, model__depths=(1, 2, 1), model__num_heads=(1, 2, 4)),
        dict(model__depths=(1,), model__num_heads=(2,), model__in_channels=2, data__mean=(0, 0), data__std=(1, 1)),
    ],
    ids=str,
)
def test_other_geometries_run(overrides):
    model = greenjax.build(small_config(**overrides))
    out = model(random_images(model), random_mask(model, 0.5))
    assert np.isfinite(out.loss)


def test_only_a_resolved_config_is_built():
    with pytest.raises(ValueError, match=r"config is not resolved: expected one of greenjax.load_config"):
        greenjax.build(greenjax.default_config())
