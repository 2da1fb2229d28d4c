"""Checkpoints of the training state. Orbax stays behind this module.

A state is kept as a flat dictionary {"params/encoder/...": array}, so that a checkpoint outlives a change of
the classes around it. Orbax writes into a temporary folder and renames it when all is there: a folder named
by its step is complete, unless something other than a save cut it short, and then it counts as absent.
"""

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from greenjax.errors import InputError

_FILES = ("state/_METADATA", "state/manifest.ocdbt")  # without these nothing can be read


class Checkpointer:
    """The checkpoints of one run, in `workdir`/checkpoints; a context manager that waits for the last save.

    At most `keep` are kept, the latest ones. Several readers may look while one run writes.
    """

    def __init__(self, workdir: str | Path, keep: int = 3):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None

    def steps(self) -> list[int]:
        """The steps of complete checkpoints, ascending."""
        folders = self.directory.glob("[0-9]*")
        return sorted(int(folder.name) for folder in folders if folder.name.isdigit() and _complete(folder))

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any) -> None:
        """Starts a save and returns as soon as `state` may be changed or donated.

        A step that is there already is left alone; an earlier one raises InputError. Errors of the previous
        save, such as a full disk, are raised here.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            if step in self.steps():
                return
            raise InputError(f"checkpoint step is {step}: expected more than the latest, {latest}")
        if self._manager is None:
            self._manager = self._open()
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(flatten_tree(state)))
        self._manager.save(step, args=arguments, force=True)

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """The state of a step (default: the latest), placed as the leaves of `abstract_state` say.

        Leaves are jax.ShapeDtypeStruct with a sharding, not necessarily the one at the time of the save.
        Raises InputError where there is no such checkpoint, or where it belongs to another configuration.
        """
        self.wait()
        path, wanted = self.directory / str(self._existing(step)), flatten_tree(abstract_state)
        handler = ocp.CompositeCheckpointHandler(state=ocp.StandardCheckpointHandler())
        with ocp.Checkpointer(handler) as reader:
            _compare(path, reader.metadata(path).item_metadata.state.tree, wanted)
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            found = reader.restore(path, args=arguments).state
        return jax.tree.unflatten(jax.tree.structure(abstract_state), [found[key] for key in wanted])

    def weights(self, step: int | None = None) -> tuple[dict[str, np.ndarray], int]:
        """The weights alone, {"encoder/norm/scale": array, ...}, and their step: the moving average where there is one.

        Raises InputError where there is no such checkpoint.
        """
        self.wait()
        step = self._existing(step)
        path = self.directory / str(step)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler())) as reader:
            leaves = reader.metadata(path).item_metadata.state.tree
            prefix = "ema/" if any(key.startswith("ema/") for key in leaves) else "params/"
            wanted = {key: leaf for key, leaf in leaves.items() if key.startswith(prefix)}
            restored = ocp.args.PyTreeRestore(
                {key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for key, leaf in wanted.items()},
                restore_args={key: ocp.RestoreArgs(restore_type=np.ndarray) for key in wanted},
                partial_restore=True,
            )
            found = reader.restore(path, args=ocp.args.Composite(state=restored)).state
        return {key.removeprefix(prefix): np.asarray(value) for key, value in found.items()}, step

    def wait(self) -> None:
        """Returns when the save under way is on disk; raises what went wrong with it."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        found = max(steps, default=None) if step is None else step
        if found is None or found not in steps:
            asked = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise InputError(f"no {asked} in {self.directory}: found {steps or 'none'}")
        return found

    def _open(self) -> ocp.CheckpointManager:
        """Opened by the first save only: a reader must not touch the folder of a run that is writing."""
        if jax.process_index() == 0:
            self._clear()
        policy = ocp.checkpoint_managers.preservation_policy.LatestN(self._keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy)
        return ocp.CheckpointManager(self.directory, options=options, item_names=("state",))

    def _clear(self) -> None:
        """Removes what a killed save or an interrupted copy left: Orbax would skip steps because of it."""
        for folder in self.directory.glob("[0-9]*"):
            if not _complete(folder):
                logging.warning("removing the incomplete checkpoint %s", folder)
                shutil.rmtree(folder)


def _complete(folder: Path) -> bool:
    try:
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
    except (OSError, ValueError):
        return False
    committed = metadata.get("commit_timestamp_nsecs") is not None
    return committed and folder.name.isdigit() and all((folder / name).is_file() for name in _FILES)


def flatten_tree(state: Any) -> dict[str, Any]:
    """{"encoder/norm/scale": leaf, ...} of nested dictionaries and named tuples."""
    leaves, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _compare(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises InputError with the first differing leaves."""
    differing = []
    for key, leaf in wanted.items():
        if key not in found:
            differing.append(f"{key} is not in the checkpoint")
        elif _kind(found[key]) != _kind(leaf):
            differing.append(f"{key} is {_kind(found[key])} in the checkpoint, {_kind(leaf)} here")
    differing += [f"{key} is only in the checkpoint" for key in found if key not in wanted]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(f"checkpoint {path} belongs to another configuration: {'; '.join(differing[:3])}{more}")


def _kind(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
