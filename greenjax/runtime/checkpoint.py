"""Checkpoints of the training state. Orbax stays behind this module.

A state is kept as a flat dictionary {"params/encoder/...": array}, so that a checkpoint outlives a change of the
classes around it. Every process writes its own part into a temporary folder; then process 0 looks every array up as a
reader does, adds the length and the hash of every file, and renames the folder to its step.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from greenjax.errors import InputError, RunError
from greenjax.runtime.checkpoint_folder import (
    damaged_file,
    is_complete,
    missing_array,
    plain_path,
    set_aside,
    write_sums,
)
from greenjax.runtime.processes import gathered, leads

_SLACK = 1 << 20  # bytes of a checkpoint that are not arrays, and to spare
_FAILED = (OSError, ValueError)  # of a save; TensorStore says ValueError for a full disk, too


class SaveError(RunError):
    """A checkpoint could not be written: the disk is full, or not there."""


class Checkpointer:
    """The checkpoints of one run, in `workdir`/checkpoints; a context manager that waits for the last save.

    The latest `keep` are kept, and the checkpoints of multiples of `keep_every` steps (0: none). Readers may look while
    one run writes.
    """

    def __init__(self, workdir: str | Path, keep: int = 3, keep_every: int = 0):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._keep, self._keep_every = keep, keep_every
        self._manager: ocp.CheckpointManager | None = None
        self._paths = ExitStack()  # of the manager's path to `directory`
        self._saving, self._arrays = 0, ()  # the step of the last save, and the names of its arrays
        self._failed = ""  # why the last save failed
        self._intact: set[int] = set()  # steps whose hashes were compared

    def steps(self) -> list[int]:
        """The steps of complete checkpoints, ascending."""
        folders = self.directory.glob("[0-9]*")
        return sorted(int(folder.name) for folder in folders if folder.name.isdigit() and is_complete(folder))

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def latest_intact_step(self) -> int | None:
        """The last step whose files are bit for bit as they were written; warns of later steps that are damaged."""
        for step in reversed(self.steps()):
            if step in self._intact:
                return step
            damaged = damaged_file(self.directory / str(step))
            if not damaged:
                self._intact.add(step)
                return step
            logging.warning("checkpoint %s/%d is damaged and passed over: %s differs", self.directory, step, damaged)
        return None

    def save(self, step: int, state: Any) -> None:
        """Starts a save and returns as soon as `state` may be changed or donated.

        A step that is there already is left alone; an earlier one raises InputError. A save that fails costs a warning,
        now or by the next call: the run goes on, and the checkpoints before it stay.
        """
        self.settle()
        try:
            latest = self.latest_step()
        except OSError:
            latest = None  # the folder is gone, as all processes are told below
        if latest is not None and step <= latest:
            if step in self.steps():
                return
            raise InputError(f"checkpoint step is {step}: expected more than the latest, {latest}")
        arrays = flatten_tree(state)
        self._saving, self._arrays = step, tuple(arrays)
        try:
            self._clear()  # drafts take room
            self._check_room(state)
            if self._manager is None:
                self._manager = self._open()
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays)), force=True)
        except _FAILED as error:
            self._give_up(error)

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """The state of a step (default: the last intact one), placed as the leaves of `abstract_state` say.

        Leaves are jax.ShapeDtypeStruct with a sharding, not necessarily the sharding at the time of the save.
        Raises InputError where there is no such checkpoint, where it is damaged or belongs to another configuration.
        """
        wanted = flatten_tree(abstract_state)
        with self._opened(step, ocp.StandardCheckpointHandler()) as (reader, folder, arrays):
            _compare(self.directory / folder.name, arrays, wanted)
            found = reader.restore(folder, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))).state
        return jax.tree.unflatten(jax.tree.structure(abstract_state), [found[key] for key in wanted])

    def check(self, abstract_state: Any, step: int) -> None:
        """Raises InputError where `restore` does. Reads no array."""
        with self._opened(step, ocp.StandardCheckpointHandler()) as (_, folder, arrays):
            _compare(self.directory / folder.name, arrays, flatten_tree(abstract_state))

    def weights(self, step: int | None = None) -> tuple[dict[str, np.ndarray], int]:
        """The weights alone, {"encoder/norm/scale": array, ...}, and their step: the moving average where there is one.

        Raises InputError where there is no such checkpoint, or where it is damaged.
        """
        with self._opened(step, ocp.PyTreeCheckpointHandler()) as (reader, folder, arrays):
            prefix = "ema/" if any(key.startswith("ema/") for key in arrays) else "params/"
            wanted = {key: leaf for key, leaf in arrays.items() if key.startswith(prefix)}
            restored = ocp.args.PyTreeRestore(
                {key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for key, leaf in wanted.items()},
                restore_args={key: ocp.RestoreArgs(restore_type=np.ndarray) for key in wanted},
                partial_restore=True,
            )
            found = reader.restore(folder, args=ocp.args.Composite(state=restored)).state
        return {key.removeprefix(prefix): np.asarray(value) for key, value in found.items()}, int(folder.name)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which will be run again; damaged ones are set aside."""
        self.settle()
        self._close_manager()
        if leads():
            for later in self.directory.glob("[0-9]*"):
                if not later.name.isdigit() or int(later.name) <= step:
                    continue
                if not is_complete(later) or damaged_file(later):
                    set_aside(later)
                else:
                    logging.warning("removing the checkpoint %s: the run goes on from step %d", later, step)
                    shutil.rmtree(later)
        _wait_for_others("greenjax forgets checkpoints")

    def settle(self) -> None:
        """Waits until the save under way is on disk, or has failed, which costs a warning."""
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
            self._failed = ""
        except _FAILED as error:
            self._give_up(error)

    def wait(self) -> None:
        """Returns when the save under way is on disk. Raises SaveError where the last save failed."""
        self.settle()
        if self._failed:
            raise SaveError(self._failed)

    def close(self) -> None:
        self.settle()
        self._close_manager()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _opened(self, step: int | None, handler: Any) -> Iterator[tuple[ocp.Checkpointer, Path, dict[str, Any]]]:
        """A reader, the folder of a step (None: the last intact one) for it, and the metadata of the arrays in it."""
        self.settle()
        steps, found = self.steps(), self.latest_intact_step() if step is None else step
        if found is None or found not in steps:
            asked = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise InputError(f"no {asked} in {self.directory}: found {steps or 'none'}")
        path = self.directory / str(found)
        if found not in self._intact and (damaged := damaged_file(path)):
            raise InputError(f"checkpoint {path} is damaged: {damaged} differs from what was written")
        with (
            ocp.Checkpointer(ocp.CompositeCheckpointHandler(state=handler)) as reader,
            plain_path(self.directory) as directory,
        ):
            folder = directory / path.name
            yield reader, folder, reader.metadata(folder).item_metadata.state.tree

    def _clear(self) -> None:
        """Before the first save: removes drafts of killed saves and sets incomplete checkpoints aside.

        Orbax would skip steps for them. Raises OSError in every process where the first one cannot.
        """
        problem, first = None, leads() and self._manager is None
        try:
            for draft in self.directory.glob("[0-9]*.orbax-checkpoint-tmp*") if first else ():
                shutil.rmtree(draft)
            for folder in self.directory.glob("[0-9]*") if first else ():
                if folder.name.isdigit() and not is_complete(folder):
                    set_aside(folder)
        except OSError as error:
            problem = str(error)
        _raise_in_all(problem)

    def _check_room(self, state: Any) -> None:
        """Raises OSError where a save cannot succeed: during a save each of Orbax's threads would raise it.

        Where Orbax cannot make a folder, its threads wait ten minutes for it, and the process with them.
        """
        problem = None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.directory):
                pass
            needed = _SLACK + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            free = shutil.disk_usage(self.directory).free
            if free < needed:
                problem = f"{free / 1e6:,.1f} MB are free at {self.directory}, it may need {needed / 1e6:,.1f} MB"
        except OSError as error:
            problem = str(error)
        _raise_in_all(problem)

    def _open(self) -> ocp.CheckpointManager:
        """Opened by the first save only: a reader must not touch the folder of a run that is writing."""
        policy = ocp.checkpoint_managers.preservation_policy
        kept: list[Any] = [policy.LatestN(self._keep)]
        if self._keep_every:
            kept.append(policy.EveryNSteps(self._keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(kept),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
        )
        directory = self._paths.enter_context(plain_path(self.directory))
        return ocp.CheckpointManager(directory, options=options, item_names=("state",))

    def _seal(self) -> None:
        """Adds the hashes, after every process has written its part and before the folder gets its name."""
        (draft,) = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        with plain_path(self.directory) as directory:
            if missing := missing_array(directory / draft.name / "state", self._arrays):
                raise OSError(f"what was written cannot be read again: {missing} is not there")
        write_sums(draft)

    def _give_up(self, error: OSError | ValueError) -> None:
        reason = str(error).strip().partition("\n")[0]
        self._failed = f"the checkpoint of step {self._saving} could not be saved: {reason}"
        there, drafts = "no", []
        with suppress(OSError):  # the folder is gone
            there = f"steps {self.steps() or 'none'}"
            drafts = [*self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")]
        logging.warning("%s; the run goes on, checkpoints of %s are there", self._failed, there)
        self._close_manager()
        for draft in drafts if leads() else ():
            shutil.rmtree(draft, ignore_errors=True)  # the next save needs its room

    def _close_manager(self) -> None:
        manager, self._manager = self._manager, None
        with self._paths:
            if manager is not None:
                try:
                    manager.close()
                except _FAILED as error:  # of the save that failed: a warning has said so
                    logging.info("closing checkpoints: %s", error)


def flatten_tree(state: Any) -> dict[str, Any]:
    """{"encoder/norm/scale": leaf, ...} of nested dictionaries and named tuples."""
    leaves, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _raise_in_all(problem: str | None) -> None:
    """Raises OSError in every process where one of them has a problem; returns when all are here."""
    if gathered(np.array([problem is not None])).any():
        raise OSError(problem or "another process cannot write")


def _wait_for_others(name: str) -> None:
    """Returns when all processes are at the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


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
