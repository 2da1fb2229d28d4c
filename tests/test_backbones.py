"""Families of backbones: what each states, and that nothing outside greenjax/backbones/ asks for one."""

import ast
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from small import FAMILIES as MODELS
from small import small_config

import greenjax
from greenjax.backbones import windows
from greenjax.backbones.convolutions import overlapping_index
from greenjax.backbones.family import Family
from greenjax.backbones.geometry import specs_of, stage_channels, stage_specs, token_grid
from greenjax.backbones.registry import ARCHITECTURES, FAMILIES, family_of
from greenjax.config import KEYS
from greenjax.planning import TokenGrid, exact_plan
from greenjax.planning.plan import StageSpec, Windows
from greenjax.planning.sites import strided_index
from greenjax.planning.tokens import to_unit_major

PACKAGE = Path(greenjax.__file__).parent
NAMES = sorted({name.partition("_")[0] for name in ARCHITECTURES} | set(FAMILIES))


def outside() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "backbones" not in path.parents]


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """The string constants of a file, by line, except docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and starts(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def starts(node) -> bool:
    """Does the body start with a string?"""
    return bool(node.body) and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)


def test_nothing_outside_backbones_names_a_family():
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text!r}"
        for path in outside()
        for line, text in strings(path)
        if text.lower().startswith(tuple(NAMES))
    ]
    assert found == []


def test_nothing_outside_backbones_reads_a_setting_of_few_families():
    """Whether model.sr_ratios is None would stand for two. config/ has the names of keys in other programs."""
    published = [{part for size in family.sizes.values() for part in size} for family in FAMILIES.values()]
    own = {part for settings in published for part in settings if sum(part in other for other in published) < 3}
    assert "sr_ratios" in own
    found = []
    for path in outside():
        tree = ast.parse(path.read_text())
        read = [(node.lineno, node.attr) for node in ast.walk(tree) if of_model(node)]
        if path.parent.name != "config" or path.stem not in ("names", "transformers"):
            read += list(strings(path))
        found += [f"{path.relative_to(PACKAGE)}:{line}" for line, name in read if name.removeprefix("model.") in own]
    assert found == []


def of_model(node) -> bool:
    """Is this an attribute of something named `model`, such as config.model.window?"""
    return isinstance(node, ast.Attribute) and ast.unparse(node.value).rpartition(".")[2] == "model"


def test_every_name_has_one_family():
    assert len(ARCHITECTURES) == sum(len(family.sizes) for family in FAMILIES.values())
    for folder, family in FAMILIES.items():
        assert family.package == f"greenjax.backbones.{folder}"
        assert all(family_of(name) is family for name in family.sizes)


def test_families_state_their_settings():
    """Published values are settings; one that a family states comes with some of its names, and is not set before."""
    assert {f"model.{part}" for size in ARCHITECTURES.values() for part in size} <= KEYS.keys()
    for family in FAMILIES.values():
        assert family.settings.keys() <= {part for size in family.sizes.values() for part in size}
        for part, key in family.settings.items():
            assert key.default is None and KEYS[f"model.{part}"] == key


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"model\.name is 'twin_s': expected swin_t or .* or pcpvt_l"):
        family_of("twin_s")


def test_a_module_that_no_family_knows_has_no_layer():
    with pytest.raises(KeyError, match="peg"):
        FAMILIES["swin"].layer(("stages", 0, "peg", "kernel"), (2, 2))
    with pytest.raises(KeyError, match="cls_token"):
        FAMILIES["swin"].layer(("cls_token",), (2, 2))
    assert replace(FAMILIES["swin"], beside_blocks={"cls_token": "before"}).layer(("cls_token",), (2, 2)) == 0


@pytest.mark.parametrize("model", MODELS)
def test_statements_fit_the_encoder(model):
    """Stages, blocks, channels and the modules beside the blocks are those of the encoder."""
    config = small_config(model)
    family: Family = family_of(config.model.name)
    encoder = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: greenjax.build(config)).encoder))
    assert len(stage_specs(config)) == len(stage_channels(config)) == len(encoder["stages"])
    beside = {part for stage in encoder["stages"].values() for part in stage} - {"blocks"}
    assert beside | encoder.keys() - {"patch_embed", "stages", "norm"} == set(family.beside_blocks)
    images = jax.ShapeDtypeStruct((1, *config.image_size, config.model.in_channels), "float32")
    _, stages = jax.eval_shape(lambda images: greenjax.build(config).dense(images), images)
    tokens = [math.prod(token_grid(config).shape(i)) for i in range(len(stages))]
    assert [x.shape[1:] for x in stages] == list(zip(tokens, stage_channels(config)))
    last = sum(config.model.depths) + 1
    paths = [[entry.key for entry in path] for path, _ in jax.tree.leaves_with_path(encoder)]
    assert {family.layer(path, config.model.depths) for path in paths} == set(range(last + 1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (StageSpec((Windows(0, 7),)), r"windows \[\(0, 7, \(0, 0\), 1\)\] for stage 2: expected sides and blocks"),
        (StageSpec((Windows(7, 7, blocks=0),)), "windows .* for stage 2: expected sides and blocks of at least 1"),
        (
            StageSpec((Windows(7, 7), Windows(7, 7, (3, 3), 2))),
            "windows .*: expected .* than the 2 blocks of the stage",
        ),
        (StageSpec(kernels=(3, (5, 4))), r"kernels \(3, \(5, 4\)\) for stage 2: expected odd sides"),
        (None, "1 stages and 2 channels: expected 2 of each"),
    ],
)
def test_a_statement_that_no_encoder_can_have_is_refused(spec, message):
    config = small_config()
    stages = (StageSpec(),) if spec is None else (StageSpec(), spec)
    family = replace(FAMILIES["swin"], stages=lambda model, grid: stages)
    with pytest.raises(ValueError, match=rf"^greenjax\.backbones\.swin states {message}"):
        specs_of(family, config.model, TokenGrid(32, 32, 2, 2))


def test_tables_of_pytorch_names_want_square_windows(monkeypatch):
    config = small_config("swin")
    for found in (Windows(4, 12),), (Windows(4, 4), Windows(8, 8)):
        monkeypatch.setattr(windows, "stage_specs", lambda _, found=found: (StageSpec(found),))
        with pytest.raises(ValueError, match=r"the windows of stage 1 are 4 x .*: expected square ones of one size"):
            windows.windowed_stages(config)


@pytest.mark.parametrize("stage, kernel, stride", [(0, 7, 4), (0, 3, 4), (1, 3, 2), (2, 3, 2), (2, 7, 2)])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_overlapping_convolutions_read_what_the_definition_says(stage, kernel, stride, count):
    """The index that follows from the visible units is that of all their tokens, or pixels, by coordinates."""
    grid = TokenGrid(48, 64, patch=4, stages=3)  # 3 x 4 units of 16 pixels
    visible = np.zeros(12, bool)
    visible[np.random.default_rng(count).permutation(12)[:count]] = True
    plan = exact_plan(grid, (), visible.reshape(1, 3, 4))
    pixels = np.indices((48, 64)).transpose(1, 2, 0)[None]
    inputs = grid.coordinates(stage - 1) if stage else to_unit_major(pixels, 16, 16).reshape(12, 256, 2)
    inputs, outputs = (places[visible].reshape(-1, 2) for places in (inputs, grid.coordinates(stage)))
    expected = strided_index(inputs, outputs, kernel, stride, kernel // 2)
    found = overlapping_index(grid, jax.tree.map(lambda leaf: leaf[0], plan), stage, kernel, stride)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
