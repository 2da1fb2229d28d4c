"""Checkpoints of the training state. Orbax stays behind this module.

A state is kept as a flat dictionary {"params/encoder/...": array}, so that a checkpoint outlives a change of
the classes around it. Every process writes its own part into a temporary folder; when all is there process 0 adds the
length and the hash of every file and renames the folder. A folder named by its step is complete then, unless something
other than a save cut it short or changed it: lengths are looked at always, hashes before anything is restored.
Before the rename the arrays are looked up as a reader looks them up; a checkpoint that lacks one is not kept.
"""

import hashlib
import json
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging
from jax.experimental import multihost_utils

from greenjax.errors import InputError, RunError
from greenjax.runtime.processes import gathered, leads

_SUMS = "sums.json"  # {file below state/: [bytes, hash]}
_SLACK = 1 << 20  # bytes of a checkpoint that are not arrays, and to spare
_FAILED = (OSError, ValueError)  # of a save; TensorStore says ValueError for a full disk, too


class SaveError(RunError):
    """A checkpoint could not be written: the disk is full, or not there."""


class Checkpointer:
    """The checkpoints of one run, in `workdir`/checkpoints; a context manager that waits for the last save.

    The latest `keep` are kept, and besides them those of multiples of `keep_every` steps (0: none). Several readers may
    look while one run writes.
    """

    def __init__(self, workdir: str | Path, keep: int = 3, keep_every: int = 0):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._keep, self._keep_every = keep, keep_every
        self._manager: ocp.CheckpointManager | None = None
        self._paths = ExitStack()  # what the manager's path to `directory` needs
        self._saving, self._arrays = 0, ()
        self._failed = ""
        self._intact: set[int] = set()

    def steps(self) -> list[int]:
        """The steps of complete checkpoints, ascending."""
        folders = self.directory.glob("[0-9]*")
        return sorted(int(folder.name) for folder in folders if folder.name.isdigit() and _complete(folder))

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def latest_intact_step(self) -> int | None:
        """The last step whose files are bit for bit as they were written; names those after it that are not."""
        for step in reversed(self.steps()):
            if step in self._intact:
                return step
            damaged = _damaged(self.directory / str(step))
            if not damaged:
                self._intact.add(step)
                return step
            logging.warning("checkpoint %s/%d is damaged and passed over: %s differs", self.directory, step, damaged)
        return None

    def save(self, step: int, state: Any) -> None:
        """Starts a save and returns as soon as `state` may be changed or donated.

        A step that is there already is left alone; an earlier one raises InputError. What cannot be written is said in
        a warning, now or by the next call: the checkpoints before it are kept, and the run goes on.
        """
        self._settle()
        latest = self.latest_step()
        if latest is not None and step <= latest:
            if step in self.steps():
                return
            raise InputError(f"checkpoint step is {step}: expected more than the latest, {latest}")
        arrays = flatten_tree(state)
        self._saving, self._arrays = step, tuple(arrays)
        try:
            self._check_room(state)
            if self._manager is None:
                self._manager = self._open()
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays)), force=True)
        except _FAILED as error:
            self._give_up(error)

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """The state of a step (default: the last intact one), placed as the leaves of `abstract_state` say.

        Leaves are jax.ShapeDtypeStruct with a sharding, not necessarily the one at the time of the save.
        Raises InputError where there is no such checkpoint, where it is damaged or belongs to another configuration.
        """
        path, wanted = self._readable(step), flatten_tree(abstract_state)
        handler = ocp.CompositeCheckpointHandler(state=ocp.StandardCheckpointHandler())
        with ocp.Checkpointer(handler) as reader, _plain(self.directory) as directory:
            _compare(path, reader.metadata(directory / path.name).item_metadata.state.tree, wanted)
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            found = reader.restore(directory / path.name, args=arguments).state
        return jax.tree.unflatten(jax.tree.structure(abstract_state), [found[key] for key in wanted])

    def weights(self, step: int | None = None) -> tuple[dict[str, np.ndarray], int]:
        """The weights alone, {"encoder/norm/scale": array, ...}, and their step: the moving average where there is one.

        Raises InputError where there is no such checkpoint, or where it is damaged.
        """
        path = self._readable(step)
        handler = ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler())
        with ocp.Checkpointer(handler) as reader, _plain(self.directory) as directory:
            leaves = reader.metadata(directory / path.name).item_metadata.state.tree
            prefix = "ema/" if any(key.startswith("ema/") for key in leaves) else "params/"
            wanted = {key: leaf for key, leaf in leaves.items() if key.startswith(prefix)}
            restored = ocp.args.PyTreeRestore(
                {key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for key, leaf in wanted.items()},
                restore_args={key: ocp.RestoreArgs(restore_type=np.ndarray) for key in wanted},
                partial_restore=True,
            )
            found = reader.restore(directory / path.name, args=ocp.args.Composite(state=restored)).state
        return {key.removeprefix(prefix): np.asarray(value) for key, value in found.items()}, int(path.name)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, a part that is going to be run again; damaged ones are set aside."""
        self._settle()
        self._close_manager()
        if leads():
            for later in self.directory.glob("[0-9]*"):
                if not later.name.isdigit() or int(later.name) <= step:
                    continue
                if not _complete(later) or _damaged(later):
                    _set_aside(later)
                else:
                    logging.warning("removing the checkpoint %s: the run goes on from step %d", later, step)
                    shutil.rmtree(later)
        _together("greenjax forgets checkpoints")

    def wait(self) -> None:
        """Returns when the save under way is on disk. Raises SaveError where the last one did not get there."""
        self._settle()
        if self._failed:
            raise SaveError(self._failed)

    def close(self) -> None:
        self._settle()
        self._close_manager()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _readable(self, step: int | None) -> Path:
        """The folder of a step, or of the last intact one, after the save under way."""
        self._settle()
        steps, found = self.steps(), self.latest_intact_step() if step is None else step
        if found is None or found not in steps:
            asked = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise InputError(f"no {asked} in {self.directory}: found {steps or 'none'}")
        path = self.directory / str(found)
        if found not in self._intact and (damaged := _damaged(path)):
            raise InputError(f"checkpoint {path} is damaged: {damaged} differs from what was written")
        return path

    def _check_room(self, state: Any) -> None:
        """Raises OSError where a save cannot succeed: in the middle each of Orbax's threads would say so.

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
        if gathered(np.array([problem is not None])).any():
            raise OSError(problem or "another process cannot write")

    def _open(self) -> ocp.CheckpointManager:
        """Opened by the first save only: a reader must not touch the folder of a run that is writing."""
        if leads():
            self._clear()
        _together("greenjax opens checkpoints")
        policy = ocp.checkpoint_managers.preservation_policy
        kept: list[Any] = [policy.LatestN(self._keep)]
        if self._keep_every:
            kept.append(policy.EveryNSteps(self._keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(kept),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
        )
        directory = self._paths.enter_context(_plain(self.directory))
        return ocp.CheckpointManager(directory, options=options, item_names=("state",))

    def _seal(self) -> None:
        """Adds the hashes, after every process has written its part and before the folder gets its name."""
        (draft,) = self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        with _plain(self.directory) as directory:
            if lacking := _lacking(directory / draft.name / "state", self._arrays):
                raise OSError(f"what was written cannot be read again: {lacking} is not there")
        (draft / _SUMS).write_text(json.dumps(_sums(draft / "state")))

    def _clear(self) -> None:
        """Removes drafts of killed saves, sets aside what is incomplete: Orbax would skip steps because of it."""
        for folder in self.directory.glob("[0-9]*"):
            if not folder.name.isdigit():
                shutil.rmtree(folder)
            elif not _complete(folder):
                _set_aside(folder)

    def _settle(self) -> None:
        """Waits for the save under way, and says what went wrong with it."""
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
            self._failed = ""
        except _FAILED as error:
            self._give_up(error)

    def _give_up(self, error: OSError | ValueError) -> None:
        reason = str(error).strip().partition("\n")[0]
        self._failed = f"the checkpoint of step {self._saving} could not be saved: {reason}"
        logging.warning("%s; the run goes on, checkpoints of steps %s are there", self._failed, self.steps() or "none")
        self._close_manager()
        if leads():
            for draft in self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                shutil.rmtree(draft, ignore_errors=True)  # it takes up the room that the next one needs

    def _close_manager(self) -> None:
        manager, self._manager = self._manager, None
        with self._paths:
            if manager is not None:
                try:
                    manager.close()
                except _FAILED as error:  # of the save that failed, told before
                    logging.info("closing checkpoints: %s", error)


def _together(name: str) -> None:
    """Waits for the other processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """A path to `folder` that means the same to Orbax and TensorStore: a link to it, where its own has odd characters.

    Orbax looks for the files to merge by a glob pattern that begins with the path. TensorStore takes a backslash for a
    slash, and refuses names that end in .__lock. Both take some prefixes for those of remote storage.
    """
    if _is_plain(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="greenjax-") as temporary:
        if not _is_plain(Path(temporary)):
            raise InputError(f"{folder} needs a link in a temporary folder, {temporary}: set TMPDIR to a plain path")
        link = Path(temporary) / folder.name
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _is_plain(folder: Path) -> bool:
    text = f"{folder}/"
    usual = re.fullmatch(r"[\w./ +=,@-]+", text, re.ASCII)
    return bool(usual) and not re.match("/(gs|s3|az|hf)/", text) and ".__lock/" not in text


def _lacking(state: Path, arrays: Iterable[str]) -> str:
    """The first of the arrays that a reader would not find whole below `state`; none: an empty string.

    Reads the index and the header of every array, and no values.
    """
    base = {"driver": "file", "path": f"{state}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    files = Counter(key.decode().rpartition("/")[0] for key in store.list().result())
    for name in arrays:
        if not files[name]:
            return name
        header = json.loads(store[f"{name}/.zarray"])
        parts = math.prod(-(-side // chunk) for side, chunk in zip(header["shape"], header["chunks"]))
        if files[name] != 1 + parts:
            return f"a part of {name}"
    return ""


def _complete(folder: Path) -> bool:
    """Orbax ended this checkpoint, and its files are as long as they were."""
    try:
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        sums = json.loads((folder / _SUMS).read_text())
        right = all((folder / "state" / name).stat().st_size == size for name, (size, _) in sums.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return folder.name.isdigit() and right and metadata.get("commit_timestamp_nsecs") is not None


def _damaged(folder: Path) -> str:
    """The first file of a complete checkpoint that is not as it was written; none: an empty string."""
    for name, (_, digest) in json.loads((folder / _SUMS).read_text()).items():
        try:
            same = _digest(folder / "state" / name) == digest
        except OSError:  # the disk cannot read it
            same = False
        if not same:
            return name
    return ""


def _set_aside(folder: Path) -> None:
    """Out of the way, and not lost: somebody may know how to read it."""
    aside = folder.with_name(f"damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
    logging.warning("the checkpoint %s is not whole: it is set aside as %s", folder, aside.name)
    folder.rename(aside)


def _sums(folder: Path) -> dict[str, tuple[int, str]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, _digest(path)) for path in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


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
