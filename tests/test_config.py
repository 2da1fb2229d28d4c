"""Settings: what a file, an override and a flag give, and that what can't work is refused in one line."""

import importlib
import json
import sys
from pathlib import Path

import pytest

import greenjax
from greenjax.backbones.registry import ARCHITECTURES
from greenjax.backbones.settings import Key
from greenjax.commands.compare import compared
from greenjax.config import KEYS, default_config, flags, flatten, load_config, read_recorded, resolve

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(ROOT.glob("configs/*.py"))
SWIN_B = ROOT / "configs" / "swin_b.py"


def parse(*overrides, config=SWIN_B):
    """The resolved config of a command line."""
    return command("--config", str(config), *overrides)[1]


def command(*arguments):
    """What a command that has a flag --workdir makes of its arguments."""
    parser = flags.Parser("python -m greenjax.main", "A command.")
    parser.add_argument("--workdir")
    return flags.parse_command(parser, ["greenjax", *map(str, arguments)])


def said(*arguments):
    """The line that a wrong command line ends with."""
    with pytest.raises(SystemExit) as caught:
        command(*arguments)
    line = caught.value.code
    assert isinstance(line, str) and line.startswith("greenjax: ") and "\n" not in line
    return line


def refusal(overrides, config=SWIN_B):
    with pytest.raises(ValueError) as caught:
        load_config(config, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_resolves_to_a_full_locked_tree(path):
    config = load_config(path)
    assert config.is_locked
    assert flatten(config).keys() == KEYS.keys()
    assert resolve(config) == config
    assert resolve(json.loads(config.to_json())) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_says_how_to_run_it_and_where(path):
    text = path.read_text()
    assert f"--config configs/{path.name}" in text
    assert "Hardware" in text


def test_the_paper_s_numbers():
    config = greenjax.load_config(str(SWIN_B))
    assert (config.epochs, config.steps, config.optim.warmup_epochs) == (100, None, 40)
    assert config.image_size == (224, 224)
    assert {part: config.model[part] for part in ARCHITECTURES["swin_b"]} == ARCHITECTURES["swin_b"]
    assert (config.mask.ratio, config.decoder.dim, config.decoder.depth) == (0.75, 512, 1)
    assert config.optim.base_lr * config.data.batch_size / 256 == pytest.approx(1.2e-3)
    baseline = load_config(ROOT / "configs" / "simmim_swin_b.py")
    assert baseline.optim.base_lr * baseline.data.batch_size / 256 == pytest.approx(8e-4)
    assert baseline.mask.groups == baseline.data.batch_size


def test_defaults_are_swin_b_once_data_and_length_are_chosen():
    config = default_config()
    config.epochs, config.optim.warmup_epochs = 100, 40
    config.data.name, config.data.eval_split = "imagenet2012", "validation"
    assert resolve(config) == load_config(SWIN_B)


def test_a_key_given_overrides_its_part_of_the_architecture():
    config = load_config(SWIN_B, {"model.window": 14, "model": {"drop_path": 0.1}})
    assert (config.model.window, config.model.patch, config.model.drop_path) == (14, 4, 0.1)


def test_a_family_s_settings_may_be_flags_and_tuples_of_any_length(monkeypatch):
    """False counts as given, where 0 does not; only tuples with one entry a stage have as many as there are stages."""
    own = {"embed_dims": Key(tuple[int, ...], None, "three numbers"), "sr_ratios": Key(bool, None, "True or False")}
    for part, key in own.items():
        monkeypatch.setitem(KEYS, f"model.{part}", key)
        monkeypatch.setitem(ARCHITECTURES["swin_b"], part, None)
    monkeypatch.setitem(ARCHITECTURES["swin_b"], "sr_ratios", True)
    model = load_config(SWIN_B, {"model.embed_dims": (1, 2, 3), "model.sr_ratios": False}).model
    assert (model.embed_dims, model.sr_ratios) == ((1, 2, 3), False)
    assert load_config(SWIN_B).model.sr_ratios is True


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("--config.image_size=192", "image_size", (192, 192)),
        ("--config.image_size=224,192", "image_size", (224, 192)),
        ("--config.image_size=(224, 192)", "image_size", (224, 192)),
        ("--config.model.window=14", "model.window", 14),
        ("--config.model.depths=2,2,6,2", "model.depths", (2, 2, 6, 2)),
        ("--config.model.num_heads=[1, 2, 4, 8]", "model.num_heads", (1, 2, 4, 8)),
        ("--config.model.mlp_ratio=2", "model.mlp_ratio", 2.0),
        ("--config.model.mlp_ratio=8,8,4,4", "model.mlp_ratio", (8.0, 8.0, 4.0, 4.0)),
        ("--config.model.mlp_ratio=(2, 2, 2.5, 2)", "model.mlp_ratio", (2.0, 2.0, 2.5, 2.0)),
        ("--config.model.sparse_conv=native,native,native,native", "model.sparse_conv", ("native",) * 4),
        ("--config.model.sparse_conv=('native', 'native', 'native', 'native')", "model.sparse_conv", ("native",) * 4),
        ("--config.model.window=0", "model.window", 7),  # as the name says
        ("--config.model.remat", "model.remat", True),
        ("--noconfig.data.flip", "data.flip", False),
        ("--config.data.flip=false", "data.flip", False),
        ("--config.optim.weight_decay=0", "optim.weight_decay", 0.0),
        ("--config.optim.base_lr=1e-3", "optim.base_lr", 1e-3),
        ("--config.data.mean=0,0,1", "data.mean", (0.0, 0.0, 1.0)),
        ("--config.data.path=/images", "data.path", "/images"),
        ("--config.epochs=800", "epochs", 800),
    ],
)
def test_flags_of_every_kind(override, key, value):
    found = flatten(parse(override))[key]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in found] == [type(item) for item in value]


def test_flags_split_by_a_space():
    config = parse("--config.image_size", "192", "--config.model.window", "6", "--config.data.std", "1,1,1")
    assert (config.image_size, config.model.window, config.data.std) == ((192, 192), 6, (1.0, 1.0, 1.0))
    assert parse("--config.data.mean", "-1,-1,-1", "-config.seed", "3").data.mean == (-1.0, -1.0, -1.0)


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--config.model.depths=(1,1,1,1)", "--config.model.depths=(2,2,2,2)"], "model.depths", (2, 2, 2, 2)),
        (["--config.model.depths", "1,1,1,1", "--config.model.depths=2,2,2,2"], "model.depths", (2, 2, 2, 2)),
        (["--config.model.depths=2,2,2,2", "-config.model.depths", "1,1,1,1"], "model.depths", (1, 1, 1, 1)),
        (["--config.image_size=192,320", "--config.image_size=192"], "image_size", (192, 192)),
        (["--config.model.mlp_ratio=2,2,2,2", "--config.model.mlp_ratio=3"], "model.mlp_ratio", 3.0),
        (["--config.data.mean=0,0,0", "--config.data.mean=1,1,1"], "data.mean", (1.0, 1.0, 1.0)),
        (["--config.seed=1", "--config.seed=2"], "seed", 2),
        (["--config.data.path=a", "--config.data.path=b"], "data.path", "b"),
        (["--config.model.remat", "--noconfig.model.remat"], "model.remat", False),
        (["--noconfig.model.remat", "--config.model.remat=1"], "model.remat", True),
        (["--config.data.flip=false", "--config.data.flip"], "data.flip", True),
        (["--config.seed=x", "--config.seed=2"], "seed", 2),
        (["--config", ROOT / "configs" / "digits.py", "--config", SWIN_B], "epochs", 100),
        (["--config.seed=4", "--config", ROOT / "configs" / "digits.py", f"-config={SWIN_B}"], "seed", 4),
        (["--workdir=a", "--config.seed=4", "--workdir", "b"], "seed", 4),
    ],
)
def test_the_last_of_a_flag_given_twice_counts(arguments, key, value):
    found, config = command("--config", SWIN_B, *arguments)
    assert flatten(config)[key] == value
    assert found.workdir in (None, "b")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_of_every_file_can_be_set_by_a_flag(path):
    config = load_config(path)
    settable = {key: value for key, value in flatten(config).items() if value is not None or KEYS[key].kind is not bool}
    overrides = [f"--config.{key}={0 if value is None else value}" for key, value in settable.items()]
    assert parse(*overrides, config=path) == config


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 50}, (50, 20)),  # 40 of the file's 100 epochs are warm-up
        ({"steps": 51, "epochs": 0}, (51, 20)),
        ({"steps": 2}, (2, 0)),
        ({"steps": 50, "optim.warmup_steps": 3}, (50, 3)),
        ({"steps": 50, "optim.warmup_steps": 0}, (50, 0)),
        ({"steps": 50, "epochs": 0, "optim.warmup_epochs": 0}, (50, 0)),
    ],
)
def test_steps_take_the_place_of_a_file_s_epochs(changes, expected):
    for config in (load_config(SWIN_B, changes), parse(*(f"--config.{key}={value}" for key, value in changes.items()))):
        assert (config.epochs, config.optim.warmup_epochs) == (None, None)
        assert (config.steps, config.optim.warmup_steps) == expected


def test_epochs_take_the_place_of_a_file_s_steps():
    config = load_config(ROOT / "configs" / "digits.py", {"epochs": 50})
    assert (config.steps, config.optim.warmup_steps) == (None, None)
    assert (config.epochs, config.optim.warmup_epochs) == (50, 3)  # 150 of 2,500 steps


@pytest.mark.parametrize("before", ["swin_b", "twins_l", "swinv2_b", "hiera_b", "pvt_v2_b2", "vit_b"])
def test_another_model_name_brings_its_sizes_to_the_settings_of_a_run(before, tmp_path):
    """config.json says all sizes of its model; no other model keeps them."""
    run = tmp_path / "config.json"
    run.write_text(json.dumps(load_config(SWIN_B, {"model.name": before}).to_dict()))
    for name in ("swin_t", "swinv2_t", "convnext_t", "vit_s", before):
        assert load_config(run, {"model.name": name}) == load_config(SWIN_B, {"model.name": name})


def test_another_model_name_leaves_what_a_written_file_sets(tmp_path):
    """Also where it is the published value of the file's model: the weights of `init` have another."""
    there = load_config(SWIN_B, {"model.name": "vit_l", "model.positions": "sincos"})
    (tmp_path / "config.json").write_text(json.dumps(there.to_dict()))
    changes = {"model.name": "vit_l", "init": str(tmp_path)}
    assert load_config(ROOT / "configs" / "finetune_mae_vit_b.py", changes).model.positions == "learned"
    written = load_config(ROOT / "configs" / "simmim_swin_b.py", {"model.name": "swinv2_b"})
    assert written.model.window == 7


def test_another_model_name_leaves_what_the_file_and_the_command_line_change(tmp_path):
    run = tmp_path / "config.json"
    run.write_text(json.dumps(load_config(SWIN_B, {"model.window": 14, "model.mlp_ratio": 3}).to_dict()))
    changed = load_config(run, {"model.name": "swin_t", "model.depths": (2, 2, 18, 2)})  # as swin_b's
    assert (changed.model.window, changed.model.mlp_ratio) == (14, 3)
    assert (changed.model.embed_dim, changed.model.depths) == (96, (2, 2, 18, 2))
    assert refusal({"model.name": "convnext_t"}, run).startswith("model.window is 14: expected none for convnext_t")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 100}, (100, 6)),  # 150 of the file's 2,500 steps are warm-up
        ({"steps": 150}, (150, 9)),
        ({"steps": 151}, (151, 150)),
        ({"steps": 100, "optim.warmup_steps": 3}, (100, 3)),
        ({"steps": 100, "optim.warmup_steps": 0}, (100, None)),
    ],
)
def test_a_warmup_that_a_shorter_run_has_no_room_for_keeps_its_share(changes, expected):
    config = load_config(ROOT / "configs" / "digits.py", changes)
    assert (config.steps, config.optim.warmup_steps or None) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.model.windw=14"], "model.window"),
        (["--config.modl.window=14"], "model.window"),
        (["--config.model=3"], "section"),
        (["--config.model.window=x"], "model.window is 'x': expected a whole number, at least 0"),
        (["--config.seed"], "--config.seed has no value: expected --config.seed=VALUE"),
        (["--config.seed", "--config.steps=3"], "--config.seed has no value"),
        (["--config.model.remat", "yes"], "argument 'yes' is not understood"),
        (["--config.model.remat=yes"], "model.remat is 'yes': expected True or False"),
        (["--noconfig.seed"], "'--noconfig.seed' is not understood: expected --config.seed=a whole number"),
        (["--noconfig.model.remat=true"], "'--noconfig.model.remat=true' is not understood"),
        (["--noconfig"], "config has no key ''"),
        (["--config"], "--config has no value: expected --config=FILE"),
        (["--config="], "config '': no such name"),
        (["--config.image_size=224x192"], "image_size is '224x192': expected pixels"),
        (["--config.image_size=225"], "multiples of the mask unit, 32"),
        (["--config.mask.ratio=0.999"], "mask.ratio"),
        (["swin_b"], "'swin_b' is not understood"),
        (["--confg.seed=1"], "confg.seed"),
        (["--learning-rate=1e-3"], "expected --config.optim.base_lr=VALUE"),
        (["--work-dir=runs/a"], "expected --workdir"),
        (["--config.steps=3", "--config.epochs=3"], "epochs is 3: expected none beside steps 3"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(arguments, expected):
    assert expected in said("--config", SWIN_B, *arguments)


def test_a_config_is_needed():
    assert "no config given: expected --config FILE" in said()
    assert "no such file; nearest are configs/swin_" in said("--config=configs/swin_bb.py")
    assert f"nearest are {SWIN_B}" in said(f"--config={SWIN_B.with_name('swinb.py')}")


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_ends_well_and_says_how_settings_are_changed(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        command(flag)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(part in text for part in ("--workdir", "--config FILE", "--config.KEY=VALUE", "--helpfull"))
    assert flag != "--helpfull" or all(f"  {key} " in text for key in KEYS)


def test_unknown_keys_are_refused_with_the_nearest():
    assert "nearest are model.window" in refusal({"model.windw": 7})
    assert "model.window" in refusal({"window": 7})
    assert "optim.base_lr" in refusal({"optim": {"base_rl": 1.0}})
    for name, key in (
        *(("lr", "optim.base_lr"), ("optim.lr", "optim.base_lr"), ("learning-rate", "optim.base_lr")),
        *(("batch_size", "data.batch_size"), ("wd", "optim.weight_decay"), ("num_epochs", "epochs")),
        *(("max_steps", "steps"), ("workers", "data.workers"), ("dataset", "data.name"), ("arch", "model.name")),
        *(("optim.weight", "optim.weight_decay"), ("model.drop_path_rate", "model.drop_path"), ("Seed", "seed")),
        *(("patch_size", "model.patch"), ("batch", "data.batch_size"), ("dropout", "model.drop_path")),
        *((name, "data.eval_split") for name in ("val", "val_dir", "val_path", "test_path")),
        *(
            ("train_path", "data.path"),
            ("train_dir", "data.path"),
            ("norm_mean", "data.mean"),
            ("norm_std", "data.std"),
        ),
        *(("grad_accum_steps", "optim.accumulation"), ("crop_pct", "data.eval_crop"), ("log_freq", "log.every")),
        *(("log_steps", "log.every"), ("hidden_size", "model.embed_dim"), ("dim", "model.embed_dim")),
    ):
        assert key in refusal({name: 1}).partition("nearest are ")[2].split(", "), name
    assert "--helpfull lists all keys" in refusal({"zzz": 1})
    config = default_config()
    config.model.windw = 7  # a config file is not locked while it is being written
    with pytest.raises(ValueError, match=r"no key 'model.windw': nearest are model.window"):
        resolve(config)


WRONG = [
    ({"task": "segment"}, "task is 'segment': expected pretrain or finetune or linear or knn or eval or detect"),
    ({"method": "mae"}, "method is 'mae': expected green or simmim"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": True}, "seed is True"),
    ({"deterministic": "maybe"}, "deterministic is 'maybe': expected True or False"),
    ({"steps": 10, "epochs": 100}, "epochs is 100: expected none beside steps 10"),
    ({"epochs": None}, "neither epochs nor steps"),
    ({"epochs": 40, "optim.warmup_epochs": 40}, "optim.warmup_epochs is 40: expected less than epochs, 40"),
    ({"steps": 50, "optim.warmup_epochs": 4}, "optim.warmup_epochs is 4: expected none in a run measured in steps"),
    ({"image_size": 200}, "image_size is (200, 200): expected multiples of the mask unit, 32"),
    ({"image_size": (224, 225)}, "image_size is (224, 225)"),
    ({"image_size": (32, 32, 32)}, "image_size is (32, 32, 32)"),
    ({"image_size": 0}, "image_size is (0, 0)"),
    ({"image_size": "big"}, "image_size is 'big'"),
    ({"image_size": 32}, "of 1 units it leaves none visible"),
    (
        {"model.name": "resnet"},
        "model.name is 'resnet': expected swin_t or swin_s or swin_b or swin_l or twins_s or",
    ),
    (
        {"model.name": "swinv2_b", "model.pretrained_windows": (12, 12, 1, 6)},
        "model.pretrained_windows is (12, 12, 1, 6): expected whole numbers, 0 or at least 2, one a stage",
    ),
    (
        {"model.name": "swinv2_b", "model.pretrained_windows": (12, 6)},
        "model.pretrained_windows is (12, 6): expected one value a stage",
    ),
    ({"model.pretrained_windows": (12, 12, 12, 6)}, "expected none for swin_b"),
    ({"model.patch": 0}, "model.patch is 0"),
    ({"model.patch": 4.0}, "model.patch is 4.0"),
    ({"model.window": -7}, "model.window is -7"),
    ({"model.mlp_ratio": 0}, "model.mlp_ratio is 0"),
    ({"model.mlp_ratio": (4, 4)}, "model.mlp_ratio is (4.0, 4.0): expected one value a stage"),
    ({"model.embed_dims": (1, 2, 3, 4)}, "model.embed_dims is (1, 2, 3, 4): expected none for swin_b"),
    ({"model.sparse_conv": "spconv"}, "model.sparse_conv is 'spconv': expected native for swin_b"),
    ({"model.sparse_conv": "dense"}, "model.sparse_conv is 'dense': expected native or spconv or masked"),
    (
        {"model.name": "twins_s", "model.sparse_conv": ("native", "dense", "masked", "native")},
        "model.sparse_conv is ('native', 'dense', 'masked', 'native'): expected native or spconv or masked, for all",
    ),
    (
        {"model.name": "twins_s", "model.sparse_conv": ("native", "masked")},
        "('native', 'masked'): expected one value a stage",
    ),
    ({"model.sparse_conv": ("native", "masked", "native", "native")}, "expected native for swin_b"),
    ({"model.spconv_callback": "io"}, "model.spconv_callback is 'io': expected pure or buffer"),
    ({"model.name": "twins_s", "model.embed_dim": 96}, "model.embed_dim is 96: expected none for twins_s"),
    ({"model.name": "pcpvt_s", "model.window": 7}, "model.window is 7: expected none for pcpvt_s"),
    ({"model.name": "twins_s", "model.embed_dims": (8, 8)}, "model.embed_dims is (8, 8): expected one value a stage"),
    (
        {"model.name": "twins_s", "model.sr_ratios": (8, 4, 2)},
        "model.sr_ratios is (8, 4, 2): expected one value a stage",
    ),
    (
        {"model.name": "twins_s", "model.sr_ratios": (8, 8, 2, 1)},
        "model.sr_ratios is (8, 8, 2, 1): expected a power of two, at most the 4 tokens along a mask unit",
    ),
    ({"model.name": "twins_s", "model.sr_ratios": (3, 2, 1, 1)}, "in place of 3"),
    (
        {"model.name": "twins_s", "model.num_heads": (2, 4, 7, 16)},
        "model.num_heads is (2, 4, 7, 16): expected a divisor of the 256 channels of stage 3 in place of 7",
    ),
    ({"model.depths": (2, 2)}, "model.num_heads is (4, 8, 16, 32): expected one value a stage"),
    ({"model.depths": ()}, "model.depths is ()"),
    ({"model.depths": 2}, "model.depths is 2"),
    ({"model.depths": (2, 2, 0, 2)}, "model.depths is (2, 2, 0, 2)"),
    ({"model.num_heads": (4, 8, 7, 32)}, "a divisor of the 512 channels of stage 3 in place of 7"),
    ({"model.embed_dim": 90}, "model.num_heads is (4, 8, 16, 32): expected a divisor of the 90 channels"),
    ({"model.drop_path": 1.0}, "model.drop_path is 1.0"),
    ({"model.norm_epsilon": float("nan")}, "model.norm_epsilon is nan"),
    ({"model.dtype": "float16"}, "float16 needs loss scaling"),
    ({"model.dtype": "float64"}, "model.dtype is 'float64'"),
    ({"model.in_channels": 1}, "data.mean is (0.485, 0.456, 0.406): expected 1 numbers"),
    ({"data.std": (1.0, 0.0, 1.0)}, "data.std is (1.0, 0.0, 1.0): expected numbers above 0"),
    ({"data.mean": (1.0, 2.0)}, "data.mean is (1.0, 2.0): expected 3 numbers"),
    ({"decoder.dim": 510}, "decoder.dim is 510: expected a multiple of 4"),
    ({"decoder.num_heads": 24}, "decoder.num_heads is 24: expected a divisor of decoder.dim, 512"),
    (
        {"decoder.fusion": True, "method": "simmim"},
        "decoder.fusion is True: expected False for method 'simmim', whose decoder is a linear layer",
    ),
    (
        {"decoder.positions": "learned", "method": "simmim"},
        "decoder.positions is 'learned': expected 'sincos' for method 'simmim', whose decoder is a linear layer",
    ),
    (
        {"decoder.fusion": True, "model.name": "vit_b"},
        "decoder.fusion is True: expected False for vit_b, which has one stage",
    ),
    (
        {"decoder.fusion": True, "model.name": "pvt_v2_b0"},
        "decoder.fusion is True: expected False for pvt_v2_b0, which norms every stage",
    ),
    (
        {"model.name": "hiera_t", "model.query_pools": 1},
        "model.query_pools is 1: expected 2 or 3 for 4 stages (model.depths)",
    ),
    ({"model.query_pools": 2}, "model.query_pools is 2: expected none for swin_b"),
    (
        {"model.name": "hiera_t", "model.query_pools": 2, "task": "detect"},
        "model.query_pools is 2: expected 3 for task 'detect': a pyramid halves its grid at every level",
    ),
    ({"mask.ratio": 0.0}, "mask.ratio is 0.0"),
    ({"mask.ratio": 1}, "mask.ratio is 1.0"),
    ({"mask.ratio": 0.99}, "of 49 units it leaves none visible"),
    ({"mask.groups": 0}, "mask.groups is 0"),
    ({"mask.groups": 3}, "mask.groups is 3: expected a divisor of data.batch_size, 2048"),
    (
        {"optim.accumulation": 16},
        "mask.groups is 8: expected a multiple of optim.accumulation x devices (mesh.data x mesh.fsdp), 16 x 1",
    ),
    ({"mask.pool": -1}, "mask.pool is -1"),
    (
        {"data.source": "webdataset"},
        "data.source is 'webdataset': expected coco or digits or folder or huggingface or list or mnist5k or python or",
    ),
    ({"data.source": "folder"}, "data.path is '': expected a directory"),
    (
        {"task": "detect", "data.source": "scenes", "data.path": "/x"},
        "which reads no path; --config.data.source=coco takes one",
    ),
    ({"data.source": "digits", "data.path": "/x"}, "data.path is '/x': expected '' for data.source 'digits', which"),
    ({"data.name": ""}, "data.name is ''"),
    ({"data.split": ""}, "data.split is ''"),
    ({"data.batch_size": 0}, "data.batch_size is 0"),
    ({"data.workers": -1}, "data.workers is -1"),
    ({"data.crop_scale": (0.5, 1.5)}, "data.crop_scale is (0.5, 1.5)"),
    ({"data.crop_scale": (1.0, 0.5)}, "data.crop_scale is (1.0, 0.5)"),
    ({"data.crop_ratio": (0.75,)}, "data.crop_ratio is (0.75,)"),
    ({"data.per_class": -1}, "data.per_class is -1"),
    ({"data.randaugment": 11}, "data.randaugment is 11.0: expected a number from 0 (off) to 10"),
    ({"data.randaugment_layers": 0}, "data.randaugment_layers is 0"),
    ({"data.erasing": 1.5}, "data.erasing is 1.5: expected a number from 0 to 1"),
    ({"data.mixup": -0.8}, "data.mixup is -0.8"),
    ({"data.cutmix": "1"}, "data.cutmix is '1'"),
    ({"data.mix_prob": 1.1}, "data.mix_prob is 1.1"),
    ({"data.mix_switch": -1}, "data.mix_switch is -1.0"),
    ({"data.eval_crop": 0}, "data.eval_crop is 0.0: expected above 0, at most 1"),
    ({"data.eval_crop": 1.1}, "data.eval_crop is 1.1"),
    ({"data.mixup": 0.8}, "data.mixup is 0.8: expected 0 for task 'pretrain'"),
    ({"data.per_class": 5}, "data.per_class is 5: expected 0 for task 'pretrain'"),
    ({"optim.label_smoothing": 1}, "optim.label_smoothing is 1.0"),
    ({"optim.base_lr": 0}, "optim.base_lr is 0.0"),
    ({"optim.b1": 1}, "optim.b1 is 1.0: expected at least 0 and below 1"),
    ({"optim.b2": -0.1}, "optim.b2 is -0.1"),
    ({"optim.eps": 0}, "optim.eps is 0.0"),
    ({"optim.clip": -1}, "optim.clip is -1.0"),
    ({"optim.base_lr": float("inf")}, "optim.base_lr is inf"),
    ({"mesh.data": 0}, "mesh.data is 0: expected at least 1, or -1 for all devices"),
    ({"mesh.fsdp": 0}, "mesh.fsdp is 0"),
    (
        {"mesh.data": 16},
        "mask.groups is 8: expected a multiple of optim.accumulation x devices (mesh.data x mesh.fsdp), 1 x 16",
    ),
    ({"log.every": 0}, "log.every is 0"),
    ({"log.keep": 0}, "log.keep is 0"),
    ({"guard.spike": 0.5}, "guard.spike is 0.5: expected a number above 1, or 0 = off"),
    ({"guard.rollbacks": -1}, "guard.rollbacks is -1"),
    ({"log.keep_every": -1}, "log.keep_every is -1"),
]


@pytest.mark.parametrize(("overrides", "expected"), WRONG)
def test_what_cannot_work_is_refused(overrides, expected):
    assert expected in refusal(overrides)


@pytest.mark.parametrize(("overrides", "expected"), WRONG)
def test_the_command_ends_in_one_line_too(overrides, expected):
    """Before JAX is imported by anything that it calls; a text as exit code is printed, and means 1."""
    flags = [f"--config.{key}={0 if value is None else value}" for key, value in overrides.items()]
    line = said("--config", SWIN_B, *flags)
    assert any(name in line for name in (*overrides, expected.partition(" is ")[0]))


def test_a_value_of_a_wrong_type_is_refused_before_anything_computes_with_it(tmp_path):
    for init in (None, 5, ["a"]):
        expected = f"init is {init!r}: expected 'none', a greenjax workdir, or a file or folder of weights"
        assert refusal({"init": init}) == expected
        for name in ("own.yaml", "own.json"):  # YAML takes JSON
            (tmp_path / name).write_text(json.dumps({"init": init, "steps": 1}))
            assert refusal({}, tmp_path / name) == expected
    (tmp_path / "own.yaml").write_text("epochs: 9\noptim: {warmup_epochs: some}\n")
    assert "optim.warmup_epochs is 'some': expected" in refusal({"steps": 5}, tmp_path / "own.yaml")
    (tmp_path / "own.yaml").write_text("model: {name: null}\n")
    assert refusal({}, tmp_path / "own.yaml").startswith("model.name is None: expected")


def test_what_needs_labels_is_for_classifiers():
    recipe = {"data.randaugment": 9, "data.erasing": 0.25, "data.mixup": 0.8, "data.cutmix": 1, "data.per_class": 5}
    for task in ("finetune", "linear", "knn", "eval"):
        data = load_config(SWIN_B, {"task": task, "model.num_classes": 1000, **recipe}).data
        assert (data.randaugment, data.mixup, data.per_class) == (9.0, 0.8, 5)


def test_one_visible_and_one_masked_unit_are_enough():
    assert load_config(SWIN_B, {"image_size": (32, 64), "mask.ratio": 0.5}).image_size == (32, 64)
    assert load_config(SWIN_B, {"mask.ratio": 0.02}).mask.ratio == 0.02


def test_a_file_without_a_config_is_refused(tmp_path):
    empty = tmp_path / "empty.py"
    empty.write_text("")
    assert "expected a function get_config()" in refusal({}, empty)
    assert "no such file" in refusal({}, tmp_path / "none.py")


def test_a_file_may_import_its_neighbours(tmp_path):
    """Those of its own folder, whatever another folder's are called; nothing of it stays."""
    path = list(sys.path)
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "neighbour.py").write_text(f"SEED = {seed}\n")
        text = "import greenjax\nfrom neighbour import SEED\n\ndef get_config():\n    import neighbour as again\n"
        text += f"    config = greenjax.load_config({str(SWIN_B)!r})\n    config.unlock()\n"
        (folder / "mine.py").write_text(text + "    config.seed = SEED * again.SEED\n    return config\n")
        assert parse(config=folder / "mine.py").seed == seed**2
    assert sys.path == path
    assert "neighbour" not in sys.modules


def test_folders_without_init_beside_a_file_are_read_anew(tmp_path):
    for seed in (1, 2, 3):
        folder = tmp_path / str(seed)
        (folder / "mine").mkdir(parents=True)
        (folder / "mine" / "part.py").write_text(f"SEED = {seed}\n")
        text = f"import greenjax, mine.part\nfrom mine import part\nconfig = greenjax.load_config({str(SWIN_B)!r})\n"
        text += "config.unlock()\nconfig.seed = part.SEED * mine.part.SEED\n\ndef get_config():\n    return config\n"
        (folder / "file.py").write_text(text)
        assert parse(config=folder / "file.py").seed == seed**2
        assert not {"mine", "mine.part"} & sys.modules.keys()


def test_packages_of_an_environment_beside_a_file_are_not_its_own(tmp_path, monkeypatch):
    """A .venv beside the config file holds JAX, which must not be imported twice; no line of it is the user's."""
    installed = tmp_path / ".venv" / "site-packages"
    for folder in (installed, tmp_path / "own" / "inner", tmp_path / "known" / "inner"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder.parent / "__init__.py").write_text("")
    (installed / "installed.py").write_text("def fail():\n    raise ValueError('no')\n")
    monkeypatch.syspath_prepend(installed)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("known")  # as greenjax is, beside a config in its checkout
    text = "import greenjax, installed, known.inner, own.inner\n\ndef get_config():\n"
    (tmp_path / "mine.py").write_text(f"{text}    return greenjax.load_config({str(SWIN_B)!r})\n")
    parse(config=tmp_path / "mine.py")
    assert not {"own", "own.inner"} & sys.modules.keys()
    (tmp_path / "mine.py").write_text(f"{text}    installed.fail()\n")
    assert said("--config", tmp_path / "mine.py").endswith("mine.py:4: ValueError: no")
    for name in ("installed", "known", "known.inner"):  # all were kept
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("x = 1\ndef get_config(:\n", 2, "SyntaxError: invalid syntax"),
        ("def get_config():\n\n    return 1 / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("import ast\n\ndef get_config():\n    ast.literal_eval('1 +')\n", 4, "SyntaxError: invalid syntax"),
        ("import nothing_like_it\n", 1, "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("from . import base\n", 1, "ImportError: attempted relative import"),
        ("import greenjax\nconfig = greenjax.default_config()\nconfig.seed = 'x'\n", 3, "TypeError: "),
        ("import greenjax\nconfig = greenjax.default_config()\nconfig.modl.name = 'x'\n", 3, "AttributeError: "),
        ("def get_config():\n    raise RuntimeError('two\\nlines')\n", 2, "RuntimeError: two lines"),
        ("import neighbour\n", 1, "neighbour.py:1: NameError: name 'oops' is not defined"),
        ("get_config = 3\n", None, "expected a function get_config()"),
        ("def get_config():\n    return 3\n", None, "get_config() returned 3, expected a ConfigDict"),
    ],
)
def test_a_file_that_fails_is_named_with_the_line(text, line, expected, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    (tmp_path / "neighbour.py").write_text("oops\n")
    found = said("--config", path)
    assert expected in found and str(path) in found
    assert line is None or f".py:{line}: " in found


def test_reference_curves_are_of_the_configurations_as_they_are():
    """A setting that changes losses asks for the curve again: `python launch/curves.py NAME`."""
    folders = sorted((ROOT / "docs" / "curves").iterdir())
    assert folders
    for folder in folders:
        kept = read_recorded(folder / "config.json", "make it anew")
        now = json.loads(json.dumps(flatten(load_config(ROOT / "configs" / f"{folder.name}.py"))))
        assert not {key for key in kept if kept[key] != now[key]}, folder.name
    assert None not in compared(folders)["measured"]["held_out_loss"]
