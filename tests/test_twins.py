"""Twins is the PyTorch Twins of torch_twins.py, dense and on visible tokens, and trains as Swin does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from small import small_config
from torch_twins import Embed as TorchEmbed
from torch_twins import Global as TorchGlobal
from torch_twins import Local as TorchLocal
from torch_twins import Peg as TorchPeg
from torch_twins import TorchTwins, copy_attention, copy_convolution, copy_embed, copy_encoder, visible_tokens
from transformers_swin import randomise

import greenjax
from greenjax.backbones.attention import WindowAttention
from greenjax.backbones.convolutions import Backend, DepthwiseConv
from greenjax.backbones.twins.encoder import BlockEmbed, GlobalAttention, Sites
from greenjax.planning import StageSpec, TokenGrid, Windows, exact_plan
from greenjax.planning.sites import submanifold_index


def pair(family, depths, size, window=7, ratios=(8, 4, 2, 1), **overrides):
    """A greenjax model and the PyTorch encoder with the same random weights."""
    stages = len(depths)
    dims, heads, mlp = (8, 16, 24, 32)[:stages], (2, 4, 3, 8)[:stages], (4, 3, 2, 2)[:stages]
    window = window if family == "twins" else None
    shape = dict(depths=depths, embed_dims=dims, num_heads=heads, mlp_ratio=mlp, sr_ratios=ratios[-stages:])
    shape = {f"model__{key}": value for key, value in shape.items()} | dict(model__window=window or 0)
    colours = dict(model__in_channels=3, data__mean=(0.0,) * 3, data__std=(1.0,) * 3)
    config = small_config(family, image_size=size, model__patch=4, **shape, **colours, **overrides)
    model = greenjax.build(config, seed=1)
    twins = TorchTwins(
        dims, depths, heads, config.model.mlp_ratio, config.model.sr_ratios, window, padded=config.model.border == "pad"
    ).eval()
    randomise(twins, seed=2)
    copy_encoder(model.encoder, twins)
    return model, twins


@pytest.mark.parametrize(
    ("family", "depths", "size", "window", "ratios", "share"),
    [
        ("twins", (1,), (16, 24), 7, (1,), 1.0),  # one stage, a grid smaller than the window
        ("twins", (2, 3), (72, 40), 4, (2, 1), 1.0),  # border windows are cut
        ("twins", (2, 1, 2), (48, 64), 3, (2, 2, 1), 0.3),  # so are units by windows; four keys a unit in stage one
        ("twins", (2, 2, 2, 2), (224, 224), 7, (8, 4, 2, 1), 1.0),
        ("twins", (2, 2, 2, 2), (224, 224), 7, (8, 4, 2, 1), 0.25),
        ("pcpvt", (2, 1, 1, 2), (96, 128), None, (8, 4, 2, 1), 1.0),
        ("pcpvt", (2, 1, 1, 2), (96, 128), None, (8, 4, 2, 1), 0.3),
    ],
    ids=str,
)
def test_dense_and_visible_twins_equal_pytorch(family, depths, size, window, ratios, share):
    """Visible tokens alone give what the whole grid gives with masked keys left out and the PEG's inputs zeroed."""
    model, twins = pair(family, depths, size, window, ratios)
    rng = np.random.default_rng(3)
    visible = rng.permutation(np.prod(model.grid.units)).reshape(model.grid.units) < share * np.prod(model.grid.units)
    images = rng.normal(size=(1, *size, 3)).astype(np.float32)
    with torch.no_grad():
        latent, stages = twins(torch.tensor(images), torch.tensor(visible))
    out = model(jnp.asarray(images), visible)
    np.testing.assert_allclose(out.latent, latent.numpy()[:, visible], atol=1e-4)
    for stage, (found, expected) in enumerate(zip(out.stages, stages, strict=True)):
        seen = np.kron(visible, np.ones((model.grid.side(stage),) * 2, bool))
        np.testing.assert_allclose(found, expected.numpy()[:, seen], atol=1e-4)


GRID = TokenGrid(20, 28, patch=1, stages=3)  # units of 4 x 4 tokens, 5 x 7 of them
VISIBLE = np.random.default_rng(0).random(GRID.units) < 0.5
BACKEND = Backend(GRID.shape(0))
RNGS = nnx.Rngs(0)


@pytest.mark.parametrize(
    ("ours", "theirs", "copy"),
    [
        (WindowAttention(16, None, 4, dtype="float32", rngs=RNGS), TorchLocal(16, 4, 3), copy_attention),
        (GlobalAttention(16, 4, 1, BACKEND, dtype="float32", rngs=RNGS), TorchGlobal(16, 4, 1), copy_attention),
        (GlobalAttention(16, 4, 4, BACKEND, dtype="float32", rngs=RNGS), TorchGlobal(16, 4, 4), copy_attention),
        (
            DepthwiseConv(16, 3, BACKEND, rngs=RNGS),
            TorchPeg(16),
            lambda ours, theirs: copy_convolution(ours, theirs.proj),
        ),
        (BlockEmbed(2, 16, 24, BACKEND, rngs=RNGS), TorchEmbed(2, 16, 24), copy_embed),
    ],
    ids=["local", "global", "sub-sampled", "peg", "embed"],
)
def test_modules_equal_pytorch(ours, theirs, copy):
    randomise(theirs, seed=5)
    ours = jax.device_put(ours)  # as build() does
    copy(ours, theirs)
    x = np.random.default_rng(1).normal(size=(2, *GRID.shape(0), 16)).astype(np.float32)
    seen = torch.tensor(np.kron(VISIBLE, np.ones((4, 4), bool)))
    with torch.no_grad():
        expected = theirs(torch.tensor(x), *(() if isinstance(theirs, TorchEmbed) else (seen,))).numpy()

    tokens = visible_tokens(GRID, VISIBLE, 0)
    plan = exact_plan(GRID, [StageSpec((Windows(3, 3),))], VISIBLE[None])
    window = jax.tree.map(lambda leaf: leaf[0], plan.windows[0][0])
    sites = Sites(window, submanifold_index(tokens, GRID.shape(0), 3))
    x = jnp.asarray(x[:, tokens[:, 0], tokens[:, 1]])
    where = {DepthwiseConv: sites.neighbours, WindowAttention: sites.window}.get(type(ours), sites)
    found = ours(x, where) + (x if isinstance(ours, DepthwiseConv) else 0)
    places = visible_tokens(GRID, VISIBLE, 1) if isinstance(theirs, TorchEmbed) else tokens
    np.testing.assert_allclose(found, expected[:, places[:, 0], places[:, 1]], atol=1e-5)


# Millions of parameters that the paper's authors published (timm's model cards), with a head of 1,000 classes.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("twins_s", 24.06),  # b: 56.07
        ("twins_l", 99.27),
        ("pcpvt_s", 24.11),
        ("pcpvt_b", 43.83),  # l: 60.99
    ],
)
def test_names_have_the_published_sizes(name, millions):
    config = greenjax.load_config("configs/twins_s.py", {"model.name": name})
    model = nnx.eval_shape(lambda: greenjax.build(config))
    encoder = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.encoder)))
    head = (model.latent_dim + 1) * 1000
    assert (encoder + head) / 1e6 == pytest.approx(millions, abs=0.006)


def test_norms_have_the_epsilons_of_the_original():
    encoder = nnx.eval_shape(lambda: greenjax.build(small_config("twins"))).encoder
    epsilon = {
        "/".join(map(str, path)): node.epsilon for path, node in nnx.iter_graph(encoder) if hasattr(node, "epsilon")
    }
    assert len(epsilon) == 12
    for name, value in epsilon.items():
        assert value == (1e-5 if "embed" in name or "sr" in name else 1e-6), name


def test_gradients_hold_no_scatter():
    model = greenjax.build(small_config("twins", model__drop_path=0.1))
    graphdef, params = nnx.split(model)
    visible = np.random.default_rng(0).permutation(64).reshape(8, 8) < 20
    plan = jax.tree.map(lambda leaf: leaf[0], exact_plan(model.grid, model.specs, visible[None]))

    def loss(params, images, plan, key):
        return nnx.merge(graphdef, params).forward(images, plan, key).loss

    images = np.zeros((2, 32, 32, 1), np.float32)
    compiled = jax.jit(jax.grad(loss)).lower(params, images, plan, jax.random.key(0)).as_text()
    assert "scatter" not in compiled


def test_the_masked_backend_gives_the_same_model():
    """One set of parameters, the same loss and gradient. (spconv: test_step.py.)"""
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype(np.float32)
    visible = np.random.default_rng(1).permutation(64).reshape(8, 8) < 20

    def value_and_grad(backend):
        config = small_config("twins", model__depths=(2, 1), model__sparse_conv=backend)
        graphdef, params = nnx.split(greenjax.build(config, seed=0))
        found = jax.jit(jax.value_and_grad(lambda params: nnx.merge(graphdef, params)(images, visible).loss))(params)
        return found[0], nnx.to_pure_dict(found[1])

    native, masked = value_and_grad("native"), value_and_grad("masked")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), masked, native)
