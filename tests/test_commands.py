"""The command `greenjax`: its table, its help, and settings by name, file and flag. Nothing here runs a model."""

import subprocess
import sys
from pathlib import Path

import pytest

from greenjax import __version__, commands
from greenjax.config import flatten, load_config
from greenjax.config.flags import split
from greenjax.errors import InputError

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
