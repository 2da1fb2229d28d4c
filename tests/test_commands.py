"""The command `greenjax`: its table, its help, and settings by name, file and flag. Nothing here runs a model."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from greenjax import __version__, commands
from greenjax.config import KEYS, flatten, load_config
from greenjax.config.flags import split
from greenjax.errors import InputError
from greenjax.evaluation.pictures import curve
from greenjax.evaluation.pictures.canvas import save_png
from greenjax.tasks.summary import next_lines

ROOT = Path(__file__).parents[1]


def said(capsys, *words):
    """What `greenjax WORDS` prints, its exit code, and its errors."""
    code = 0
    try:
        commands.main(["greenjax", *words])
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    return (out, code, err) if isinstance(code, int) else (out, 1, f"{err}{code}\n")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_fits_one_screen_and_shows_three_examples(words, capsys):
    out, code, _ = said(capsys, *words)
    lines = out.splitlines()
    assert code == 0 and len(lines) <= 24 and max(map(len, lines)) <= 80
    assert all(f"\n  {name.partition(' ')[0]} " in out for name in commands.COMMANDS)
    assert len(lines[lines.index("examples:") + 1 :]) == 3


def test_the_version(capsys):
    assert said(capsys, "--version") == (f"greenjax {__version__}\n", 0, "")


def test_help_and_a_misspelt_command_import_nothing_heavy():
    script = "import sys; from greenjax.commands import main\ntry: main(['', *sys.argv[1:]])\nexcept SystemExit: pass"
    check = f"{script}\nassert not {{'jax', 'numpy', 'ml_collections'}} & set(sys.modules)"
    for words in ([], ["pretain"]):
        done = subprocess.run([sys.executable, "-c", check, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_answers_help_by_its_own_name(name, capsys):
    out, code, err = said(capsys, *name.split(), "--help")
    assert (code, err) == (0, "") and out.startswith(f"usage: greenjax {name} ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretain"], "no command 'pretain': nearest are pretrain"),
        (["fine-tune", "--config", "x"], "no command 'fine-tune': nearest are finetune"),
        (["data", "prepar"], "no command 'data prepar': nearest are data prepare"),
        (["--verison"], "no command '--verison'"),
    ],
)
def test_an_unknown_command_is_refused_in_one_line(words, expected, capsys):
    out, code, err = said(capsys, *words)
    assert (out, code, err.count("\n")) == ("", 2, 1) and expected in err


def test_a_group_of_commands_lists_them(capsys):
    out, code, _ = said(capsys, "data", "--help")
    assert code == 0 and "greenjax data prepare" in out and "greenjax data statistics" in out


def test_configs_by_name_are_the_files_of_the_checkout():
    assert load_config("swin_t") == load_config(ROOT / "configs" / "swin_t.py")
    with pytest.raises(InputError, match=r"config 'swin_bb': no such name; nearest are swin_b, "):
        load_config("swin_bb")


def test_json_and_yaml_are_configs(tmp_path):
    """A run's config.json gives the run's settings; a file may be nested or flat; YAML has a text for 1e-3."""
    config = load_config("digits")
    (tmp_path / "config.json").write_text(config.to_json())
    assert load_config(tmp_path / "config.json") == config
    text = "steps: 20\nimage_size: [64, 32]\nmodel: {name: swin_t, depths: '2,2,2,2'}\noptim.base_lr: 1e-3\n"
    (tmp_path / "mine.yaml").write_text(text + "data:\n  source: digits\n  flip: false\n")
    mine = flatten(load_config(tmp_path / "mine.yaml", task="finetune"))
    wanted = {"task": "finetune", "steps": 20, "image_size": (64, 32), "model.depths": (2, 2, 2, 2)}
    wanted |= {"optim.base_lr": 1e-3, "data.source": "digits", "data.flip": False}
    assert {key: mine[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "steps: [", "a.yaml': while parsing"),
        ("a.yaml", "steps", "expected settings, such as"),
        ("a.yaml", "stepz: 3", "config has no key 'stepz': nearest are steps"),
        ("a.json", "{", "a.json"),
        ("a.txt", "", "expected a file named *.py or *.json or *.yaml or *.yml"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused_in_one_line(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / name)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", ["data.path=/a b", "optim.base_lr=1e-3", "model.depths=2,2", "model.remat=true", "epochs=None"]
)
def test_set_is_the_same_as_a_flag_of_the_config(change):
    expected = split([f"--config.{change}"]).overrides
    assert expected
    assert split(["--set", change]).overrides == split([f"--set={change}"]).overrides == expected
    assert split(["--config.seed=1", "--set", "seed=2", "--set=model.remat"]).overrides == {
        "seed": 2,
        "model.remat": True,
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["finetune", "--config", "swin_b"],
            "task is 'pretrain' in config 'swin_b': expected 'finetune', such as finetune_swin_b",
        ),
        (["linear", "--config", "linear_swin_b", "--set", "task=knn"], "task is 'knn': expected none beside"),
        (["pretrain", "--config", "digits", "--set", "seed"], "--set seed has no value: expected --set seed=VALUE"),
        (["pretrain", "--config", "digits", "--set", "sed=3"], "config has no key 'sed': nearest are seed"),
        (["pretrain"], "no config given"),
        (["pretrain", "--config", "RUN/config.json"], "no workdir given: expected --workdir=DIR"),
    ],
)
def test_settings_that_a_command_refuses(words, expected, capsys, tmp_path):
    (tmp_path / "config.json").write_text(load_config("digits").to_json())
    words = [word.replace("RUN", str(tmp_path)) for word in words]
    out, code, err = said(capsys, *words)
    assert (out, code, err.count("\n")) == ("", 1, 1)
    assert err.startswith(f"greenjax {words[0]}: ") and expected in err


def test_every_setting_has_a_short_meaning(capsys):
    assert not [key for key, entry in KEYS.items() if not 3 < len(entry.meaning) <= 200 or "\n" in entry.meaning]
    out, code, _ = said(capsys, "settings")
    assert code == 0 and all(f"\n  {key} " in f"\n{out}" for key in KEYS)


def test_settings_are_found_by_words_of_name_and_meaning(capsys):
    out, _, _ = said(capsys, "settings", "mask.ratio")
    assert out.splitlines() == [
        "  mask.ratio               0.75",
        "      the masked share of the units",
        "      allowed: above 0 and below 1",
    ]
    keys = {
        line.split()[0] for line in said(capsys, "settings", "Learning-Rate", "warm")[0].splitlines() if line[2] != " "
    }
    assert keys == {"optim.warmup_lr", "optim.base_lr"}
    assert "by model.name" in said(capsys, "settings", "model.window")[0]
    assert said(capsys, "settings", "num_workers")[1:] == (
        1,
        "greenjax settings: no setting has 'num_workers' in its name or meaning: nearest are data.workers\n",
    )


def test_a_run_started_by_the_command_ends_with_lines_that_begin_with_it():
    config = load_config("digits")
    _, tune, export = next_lines(config, Path("runs/digits"), "digits", script=True)
    words = "finetune --config finetune_digits --config.init=runs/digits --workdir runs/digits_finetuned"
    assert tune.split("  ")[-1].strip() == f"greenjax {words}"
    assert export.split("  ")[-1].strip().startswith("greenjax convert to-torch --workdir runs/digits ")


def test_the_wheel_holds_the_configs(tmp_path):
    """Built from a copy, without network; outside the checkout a name is that of a file in the wheel."""
    files = ("pyproject.toml", "setup.py", "requirements-base.txt", "README.md", "LICENSE")
    for name in files:
        shutil.copy(ROOT / name, tmp_path)
    for name in ("greenjax", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, tmp_path / "built"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "built").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    script = "from greenjax.config.places import *; print(SHIPPED, *shipped())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "built", env=environment, capture_output=True, text=True
    )
    names = sorted(path.stem for path in ROOT.glob("configs/*.py"))
    assert done.stdout.split() == [str(tmp_path / "installed" / "greenjax" / "configs"), *names], done.stderr
    (entry,) = (tmp_path / "installed").glob("*.dist-info/entry_points.txt")
    assert "greenjax = greenjax.commands:main" in entry.read_text()


def test_ctrl_c_is_one_line_of_any_command(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("greenjax.commands.compare.compared", interrupted)
    out, code, err = said(capsys, "compare", "runs/a")
    assert (out, code) == ("", 1) and err == "greenjax compare: stopped\n"


def test_runs_are_compared_by_what_differs(tmp_path, capsys, monkeypatch):
    for name, seed, loss in (("a", 0, 0.5), ("b", 1, 0.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(load_config("digits", {"seed": seed}).to_json())
        lines = [{"step": 1, "loss": 9.0}, {"step": 20, "loss": loss, "waited": 0.1, "skipped": 0}]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "knn").mkdir()
    (tmp_path / "knn" / "results.json").write_text('{"test k=10": {"task": "knn", "k": 10, "top1": 0.75}}')
    runs = [str(tmp_path / name) for name in ("a", "b", "knn")]
    out, code, err = said(capsys, "compare", *runs, "--json", str(tmp_path / "table.json"))
    assert (code, err) == (0, "") and "seed" in out and "0.75" in out
    assert json.loads((tmp_path / "table.json").read_text()) == {
        "runs": runs,
        "settings": {"seed": [0, 1, None]},
        "measured": {"step": [20, 20, None], "loss": [0.5, 0.25, None]},
        "results": {"test k=10 top1": [None, None, 0.75]},
    }
    (tmp_path / "a").rename(tmp_path / "[lr] :x:")  # rich's markup, and an emoji of it
    results = {"test": {"[/top1]": 0.5}}
    (tmp_path / "knn" / "results.json").write_text(json.dumps(results))
    monkeypatch.setenv("COLUMNS", "500")
    out, code, err = said(capsys, "compare", str(tmp_path / "[lr] :x:"), str(tmp_path / "knn"))
    assert (code, err) == (0, "") and "/[lr] :x:" in out and "test [/top1]" in out
    out, code, err = said(capsys, "compare", str(tmp_path))
    assert (out, code) == ("", 1) and f"{str(tmp_path)!r} is no run: expected a folder with" in err


def test_losses_of_several_runs_are_drawn_into_one_picture(tmp_path, capsys, monkeypatch):
    lines = [{"step": 0, "held_out_loss": 2.0}, {"step": 1, "loss": 9.0}, {"step": 20, "loss": 0.5}]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(load_config("digits").to_json())
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    runs, plot = [str(tmp_path / name) for name in ("a", "b")], str(tmp_path / "losses.png")
    drawn = []
    monkeypatch.setattr(curve, "save_png", lambda figure, path: drawn.append(figure) or save_png(figure, path))
    assert said(capsys, "compare", *runs, "--plot", plot)[1:] == (0, "")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == runs
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 9], [20, 0.5]], [[0, 2]]] * 2
    assert "expected a file named *.png" in said(capsys, "compare", *runs, "--plot", str(tmp_path / "a.txt"))[2]
    (tmp_path / "folder.png").mkdir()
    out, code, err = said(capsys, "compare", *runs, "--plot", str(tmp_path / "folder.png"))
    assert "held_out_loss" in out and code and err.endswith("folder.png' cannot be written: Is a directory\n")
    (tmp_path / "b" / "metrics.jsonl").unlink()
    assert f"{runs[1]!r} has no losses" in said(capsys, "compare", *runs, "--plot", plot)[2]
