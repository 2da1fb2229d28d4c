"""Puts configs/*.py into the wheel as greenjax/configs, from which `--config swin_b` takes them; see pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Also copies the configs; an editable installation takes those of the checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "greenjax" / "configs"
            self.mkpath(str(target))
            for file in Path("configs").glob("*.py"):
                self.copy_file(str(file), str(target / file.name))


setup(cmdclass={"build_py": WithConfigs})
