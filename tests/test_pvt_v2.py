"""PVT v2 on visible tokens: equal to transformers' where all are visible, to a masked dense network elsewhere."""

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from masked_dense import attention, blocks_joined, check, convolution, dense, moved, norm, pictures, seen_at
from small import small_config

import greenjax

BEHIND_CONVOLUTIONS = 1e-5  # epsilon of these norms, as in the original; the others have model.norm_epsilon


def small_model(**overrides):
    return greenjax.build(small_config("pvt_v2", model__depths=(1, 1), **overrides))


@pytest.fixture(scope="module")
def model():
    return moved(small_model())


def test_all_visible_equals_transformers(tmp_path):
    """With the one epsilon that transformers has for all norms."""
    settings = dict(model__patch=4, model__norm_epsilon=BEHIND_CONVOLUTIONS)
    model = moved(small_model(**settings, task="finetune", model__num_classes=5))
    greenjax.save_torch(model, tmp_path / "hf", layout="hf")
    greenjax.save_torch(model, tmp_path / "encoder", layout="hf", encoder_only=True)
    images = pictures()
    pixels = torch.tensor(images).permute(0, 3, 1, 2)

    def opened(cls, folder, **options):
        theirs, info = cls.from_pretrained(tmp_path / folder, output_loading_info=True, **options)
        assert not any(info.values()), info
        with torch.no_grad():
            return theirs.eval()(pixels)

    logits = opened(transformers.PvtV2ForImageClassification, "hf").logits
    np.testing.assert_allclose(model(images), logits, atol=1e-5)
    last = opened(transformers.PvtV2Model, "encoder").last_hidden_state.permute(0, 2, 3, 1)
    maps = greenjax.features(model, images)
    np.testing.assert_allclose(maps[-1], last, atol=1e-5)
    names = [f"stage{i + 1}" for i in range(len(maps))]
    pyramid = opened(transformers.PvtV2Backbone, "encoder", out_features=names).feature_maps
    for ours, theirs in zip(maps, pyramid, strict=True):
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-5)


def attended(x, seen, params, heads, ratio):
    """All tokens to the visible blocks of ratio x ratio tokens."""
    keys, c = x, x.shape[-1]
    if ratio > 1:
        flat = dict(kernel=params["sr"]["kernel"].reshape(-1, c), bias=params["sr"]["bias"])
        keys = norm(dense(blocks_joined(x, ratio), flat), params["sr"]["norm"], BEHIND_CONVOLUTIONS)
    k, v = jax.numpy.split(dense(keys, params["kv"]), 2, axis=-1)
    q, k, v = (a.reshape(len(a), -1, heads, c // heads) for a in (dense(x, params["q"]), k, v))
    allowed = np.broadcast_to(seen[::ratio, ::ratio].ravel(), (q.shape[1], k.shape[1]))
    return dense(attention(q * q.shape[-1] ** -0.5, k, v, 0, allowed).reshape(x.shape), params["proj"])


def reference(params, images, settings, grid, visible):
    x, outputs = images * seen_at(visible, grid.unit)[..., None], []
    for i, depth in enumerate(settings.depths):
        stage, seen = params["stages"][i], seen_at(visible, grid.side(i))[..., None]
        embed = stage["patch_embed"] if i else params["patch_embed"]
        stride = 2 if i else settings.patch
        x = convolution(x, embed["proj"]["kernel"], embed["proj"]["bias"], stride=stride, groups=1)
        x = norm(x, embed["norm"], BEHIND_CONVOLUTIONS)
        for j in range(depth):
            block = stage["blocks"][j]
            normed = norm(x, block["norm1"], settings.norm_epsilon)
            x = x + attended(normed, seen[..., 0], block["attn"], settings.num_heads[i], settings.sr_ratios[i])
            y = dense(norm(x, block["norm2"], settings.norm_epsilon), block["mlp"]["fc1"]) * seen
            y = convolution(y, block["mlp"]["conv"]["kernel"], block["mlp"]["conv"]["bias"])
            x = x + dense(jax.nn.gelu(y, approximate=False), block["mlp"]["fc2"])
        x = norm(x, stage.get("norm", params["norm"]), settings.norm_epsilon)
        outputs.append(x)
        x = x * seen
    return outputs[-1], outputs


def test_visible_tokens_and_gradients_equal_the_masked_dense_network(model):
    check(model, reference, 0.4, tolerance=1e-6)


def test_backends_give_the_same_gradients(model):
    images, visible = pictures(), np.random.default_rng(3).random(model.grid.units) < 0.4
    state = nnx.state(model)

    def gradients(backend):
        graphdef, _ = nnx.split(small_model(model__sparse_conv=backend))
        return jax.jit(jax.grad(lambda state: nnx.merge(graphdef, state)(images, visible).loss))(state)

    for a, b in zip(*(jax.tree.leaves(gradients(backend)) for backend in ("masked", "native")), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# Millions of parameters, with a head of 1,000 classes: table 1 of the paper, to another digit by timm's model cards.
@pytest.mark.parametrize(("name", "millions"), [("pvt_v2_b0", 3.67), ("pvt_v2_b2", 25.36), ("pvt_v2_b5", 81.96)])
def test_names_have_the_published_sizes(name, millions):
    model = nnx.eval_shape(
        lambda: greenjax.build(greenjax.resolve({"model.name": name, "steps": 1, "data.source": "digits"}))
    )
    encoder = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.encoder)))
    assert (encoder + (model.latent_dim + 1) * 1000) / 1e6 == pytest.approx(millions, abs=0.006)


def test_norms_have_the_epsilons_of_the_original(model):
    epsilon = {"/".join(map(str, path)): node.epsilon for path, node in nnx.iter_graph(model.encoder) if of_norm(node)}
    assert len(epsilon) == 2 + 1 + 4 + 2  # patch embeddings, sub-sampling, blocks, stages
    for name, value in epsilon.items():
        assert value == (BEHIND_CONVOLUTIONS if "embed" in name or "sr" in name else 1e-6), name


def of_norm(node):
    return hasattr(node, "epsilon")
