"""A run is killed, stopped, starved and damaged, again and again; it has to end as if nothing had happened.

    python -m tests.faults.campaign [--faults 100] [--seed 0] [--workdir DIR]

The campaign disturbs one run of pre-training on a folder of small images, in a random order and at random moments.
After each fault the same command goes on, from the last checkpoint that is intact. At the end its weights are, bit for
bit, those of a run that nothing disturbed. Faults that change what is trained on, or that a run refuses, have a run of
their own. One line a fault says its kind and what came of it; the last lines count faults, losses and repeated steps.

A wait of more than PATIENCE seconds counts as a hang. Time limits are checked here and not by the test suite, so run
the campaign on a machine that does nothing else. FAULTS_SLACK=N in the environment multiplies them by N.
"""

import argparse
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from sklearn.datasets import load_digits

from greenjax.runtime.checkpoint import Checkpointer
from greenjax.runtime.checkpoint_folder import plain_path
from greenjax.runtime.files import read_metrics

IMAGES = 64
SLACK = int(os.environ.get("FAULTS_SLACK", "1"))
PATIENCE = 60 * SLACK  # seconds for whatever is waited for
ENDS_WITHIN = 30 * SLACK  # seconds after the death of a data worker
FINISHES_WITHIN, STOPS_WITHIN = 5 * SLACK, 10 * SLACK  # seconds after the last step, and after Ctrl-C
SMALL_FILES = 200_000  # bytes: less than a checkpoint's largest file, more than the metrics
CONFIG = """
import greenjax

def get_config():
    config = greenjax.default_config()
    config.image_size = 16
    config.model.name = "swin_t"
    config.model.in_channels = 1
    config.model.patch = 2
    config.model.window = 4
    config.model.embed_dim = 48
    config.model.depths = (1, 1)
    config.model.num_heads = (2, 4)
    config.model.drop_path = 0.1
    config.decoder.dim = 64
    config.decoder.num_heads = 2
    config.steps = {steps}
    config.ema = 0.9
    config.data.source = "folder"
    config.data.path = {images!r}
    config.data.split = "all"
    config.data.batch_size = 16
    config.data.workers = 1
    config.data.mean = (0.3,)
    config.data.std = (0.4,)
    config.log.every = 20
    config.log.eval_every = 0
    config.log.picture_every = 0
    config.log.checkpoint_every = 40
    return config
"""
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
ODD = [
    "[1]",
    "*",
    "?",
    "{a,b}",
    "#",
    "%20",
    "a b",
    "'",
    '"',
    "back\\slash",
    "a:b",
    "&",
    "~",
    "$HOME",
    "new\nline",
    "ü",
    "🌱",
]

LARGE = (  # a run of its own, with batches of five megabytes
    "--config.image_size=128",
    "--config.model.patch=16",
    "--config.model.in_channels=3",
    "--config.data.mean=(0.3,0.3,0.3)",
    "--config.data.std=(0.4,0.4,0.4)",
    "--config.data.batch_size=96",
    "--config.log.every=1",
    "--config.log.checkpoint_every=5",
)


class Campaign:
    """One disturbed run and its undisturbed twin."""

    def __init__(self, folder: Path, faults: int, seed: int):
        self.folder, self.workdir, self.images = folder, folder / "run", folder / "images"
        self.dice, self.repeated, self.before = random.Random(seed), 0, 0
        write_images(self.images)
        self.config = folder / "config.py"
        self.config.write_text(CONFIG.format(steps=150 + 120 * faults, images=str(self.images)))

    def command(self, workdir: Path, *overrides: str) -> list[str]:
        return [sys.executable, "-m", "greenjax.main", f"--config={self.config}", f"--workdir={workdir}", *overrides]

    def start(
        self,
        workdir: Path,
        *overrides: str,
        file_limit: int | None = None,
        output: IO[str] | int = subprocess.PIPE,
        reads: bool = True,
    ) -> subprocess.Popen:
        """The command. What it says goes to `output`; to a pipe that is closed at once where nobody `reads`."""
        command = self.command(workdir, *overrides)
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT, text=True)
        if file_limit:  # Python ignores SIGXFSZ: a write beyond the limit fails
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_limit, file_limit))
        self.said = said = []
        if process.stdout is not None and not reads:
            process.stdout.close()
        heard = process.stdout if reads and process.stdout is not None else ()
        self.reader = threading.Thread(target=lambda: said.extend(heard), daemon=True)
        self.reader.start()
        return process

    def log(self) -> str:
        """What the last run has said; all of it once the run has ended."""
        return "".join(self.said)

    def step(self, workdir: Path | None = None) -> int:
        lines = read_metrics(workdir or self.workdir)
        return max((line["step"] for line in lines), default=0)

    def said_step(self) -> int:
        """The last step that this process has told; metrics.jsonl still has those of the one before for a while."""
        return max(map(int, re.findall(r"step (\d+)/\d+  loss", self.log())), default=0)

    def wait_for(self, process: subprocess.Popen, condition, what: str) -> None:
        limit = time.monotonic() + PATIENCE
        while not condition():
            if process.poll() is not None:
                raise AssertionError(f"the run ended while {what} was waited for:\n{self.log()}")
            if time.monotonic() > limit:
                process.kill()
                raise AssertionError(f"{what} did not come:\n{self.log()}")
            time.sleep(0.002)

    def underway(self, **how) -> subprocess.Popen:
        """The run, started again, some random steps after the last intact checkpoint, where it has to go on."""
        saved = Checkpointer(self.workdir).latest_intact_step() or 0
        process = self.start(self.workdir, **how)
        self.wait_for(process, lambda: "going on at" in self.log() or " loss " in self.log(), "the start")
        begun = re.search(r"going on at step (\d+)", self.log())
        begun = int(begun[1]) if begun else 0
        assert begun == saved, f"the run goes on at step {begun}, step {saved} was saved"
        self.repeated += max(0, self.before - begun)
        wanted = begun + self.dice.randrange(5, 100)
        self.wait_for(process, lambda: self.said_step() >= wanted, f"step {wanted}")
        time.sleep(self.dice.random() * 0.2)
        return process

    def ended(self, process: subprocess.Popen, code: int, within: float = PATIENCE) -> str:
        try:
            found = process.wait(within)
            self.reader.join(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"the run did not end within {within} s:\n{self.log()}") from None
        assert found == code, f"exit code {found}, expected {code}:\n{self.log()}"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    # The faults. Each leaves the run stopped and says what came of it.

    def kill_run(self) -> str:
        process = self.underway()
        process.kill()
        return self.ended(process, -signal.SIGKILL)

    def kill_worker(self) -> str:
        process = self.underway()
        return self.without_worker(process, self.workdir)

    def without_worker(self, process: subprocess.Popen, workdir: Path) -> str:
        """One of the run's data workers is killed: the run names it, and ends."""
        workers = workers_of(process.pid)
        victim = self.dice.choice(workers)
        os.kill(victim, signal.SIGKILL)
        outcome = self.ended(process, 1, ENDS_WITHIN)
        name = rf"data worker \d of {len(workers)} \(process {victim}\)"
        said = rf"greenjax: {name} was killed by SIGKILL .*{re.escape(str(workdir))}$"
        assert re.search(said, self.log(), re.MULTILINE), self.log()
        return f"{outcome}, worker named"

    def kill_worker_of_many(self) -> str:
        """At a random moment, with messages of megabytes under way; what was saved before is intact."""
        workdir, process = self.large_run("--config.steps=1000", workers=self.dice.choice((2, 4)))
        wanted = self.dice.randrange(3, 20)
        self.wait_for(process, lambda: self.said_step() >= wanted, f"step {wanted}")
        time.sleep(self.dice.random() * 0.2)
        outcome = self.without_worker(process, workdir)
        saved, due = Checkpointer(workdir).latest_intact_step() or 0, self.said_step() // 5 * 5
        assert saved >= due, f"step {due} was saved, step {saved} is there"
        return f"{outcome}, step {saved} kept"

    def kill_worker_at_start(self) -> str:
        """Before its first batch; what workers are given, with the names of 4,000 files, fills no pipe."""
        many = self.folder / "many"
        if not many.exists():
            many.mkdir()
            for index in range(4000):
                os.link(
                    self.images / f"{index % IMAGES:03}.jpg", many / f"a_photograph_with_a_rather_long_name_{index}.jpg"
                )
        workdir, process = self.large_run(f"--config.data.path={many}", workers=self.dice.choice((1, 2, 4)))
        self.wait_for(process, lambda: workers_of(process.pid), "a data worker")
        time.sleep(self.dice.random() * 0.5)
        return self.without_worker(process, workdir)

    def finish_with_many_workers(self) -> str:
        """Eight workers with batches that nobody wants any more: the run ends at once, without a word of them."""
        _, process = self.large_run("--config.steps=10", "--config.optim.warmup_steps=1", workers=8)
        self.wait_for(process, lambda: "step 10/10  loss" in self.log(), "the last step")
        outcome = self.ended(process, 0, FINISHES_WITHIN)
        assert "leaked" not in self.log(), self.log()
        return outcome

    def interrupt_with_many_workers(self) -> str:
        """Ctrl-C goes to all processes of a terminal."""
        _, process = self.large_run("--config.steps=1000", workers=8)
        self.wait_for(process, lambda: self.said_step() >= 3, "step 3")
        for pid in (process.pid, *workers_of(process.pid)):
            os.kill(pid, signal.SIGINT)
        return self.ended(process, 75, STOPS_WITHIN)

    def large_run(self, *overrides: str, workers: int) -> tuple[Path, subprocess.Popen]:
        workdir = self.folder / f"large{self.dice.random()}"
        return workdir, self.start(workdir, *LARGE, f"--config.data.workers={workers}", *overrides)

    def terminate(self, number: int = signal.SIGTERM) -> str:
        process = self.underway()
        process.send_signal(number)
        outcome = self.ended(process, 75)
        done = int(re.search(r"stopped by SIG\w+ after step (\d+)", self.log())[1])
        assert Checkpointer(self.workdir).latest_step() == done
        return f"{outcome}, saved"

    def interrupt(self) -> str:
        return self.terminate(signal.SIGINT)

    def hang_up(self) -> str:
        """The terminal closes; the second SIGHUP, which comes with it, does not cut the save short."""
        process = self.underway()
        process.send_signal(signal.SIGHUP)
        time.sleep(self.dice.random() * 0.1)
        return self.stopped(process, signal.SIGHUP)

    def close_pipe(self) -> str:
        """Whoever reads what the run says goes away, as `head` does: the run goes on."""
        process = self.start(self.workdir, reads=False)
        return self.unheard(process, signal.SIGTERM)

    def fill_log_disk(self) -> str:
        """The disk of the log is full, from the first line on: the run goes on."""
        with open("/dev/full", "w") as full:
            process = self.start(self.workdir, output=full)
        return self.unheard(process, signal.SIGINT)

    def unheard(self, process: subprocess.Popen, number: int) -> str:
        """A run that cannot say anything trains on some random steps, and saves when it is stopped."""
        saved = Checkpointer(self.workdir).latest_intact_step() or 0
        # Its metrics begin where it goes on, and grow from there.
        self.wait_for(process, lambda: self.step() <= saved, "the start")
        wanted = saved + self.dice.randrange(20, 100)
        self.wait_for(process, lambda: self.step() >= wanted, f"step {wanted}")
        self.repeated += max(0, self.before - saved)
        return self.stopped(process, number)

    def stopped(self, process: subprocess.Popen, number: int) -> str:
        """Asked to stop, the run saves the step that its metrics had come to, or a later one."""
        seen = self.step()
        process.send_signal(number)
        outcome = self.ended(process, 75)
        done = Checkpointer(self.workdir).latest_intact_step()
        assert done is not None and done >= seen, f"step {seen} was done, step {done} is saved"
        return f"{outcome}, step {done} saved"

    def fill_disk(self) -> str:
        """Files that grow beyond a limit fail as on a full disk; the run goes on, and can't save when it is stopped."""
        kept = Checkpointer(self.workdir).steps()
        process = self.underway(file_limit=SMALL_FILES)
        self.wait_for(process, lambda: "could not be saved" in self.log(), "a save that fails")
        seen = self.step()
        self.wait_for(process, lambda: self.step() > seen, "another step")
        process.terminate()
        outcome = self.ended(process, 1)
        assert set(Checkpointer(self.workdir).steps()) <= set(kept)  # a damaged one may be gone
        return f"trained on without saving, {outcome}"

    def damage_newest(self) -> str:
        """Some bytes of the newest checkpoint change: it is passed over."""
        self.terminate()
        files = [path for path in self.newest().glob("state/**/d/*") if path.stat().st_size > 1000]
        path = self.dice.choice(files)
        data = bytearray(path.read_bytes())
        place = self.dice.randrange(len(data))
        data[place : place + 8] = bytes(255 - byte for byte in data[place : place + 8])
        path.write_bytes(data)
        return f"{path.parent.name}/{path.name} changed"

    def tear_newest(self) -> str:
        """A file of the newest checkpoint is cut short, or gone."""
        self.terminate()
        path = self.dice.choice([path for path in self.newest().rglob("*") if path.is_file()])
        if self.dice.random() < 0.5:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return f"{path.name} {'cut short' if path.exists() else 'removed'}"

    def second_run(self) -> str:
        """The same command while the run is under way: it ends at once, and the run does not notice."""
        process = self.underway()
        second = subprocess.run(
            self.command(self.workdir), env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE
        )
        assert second.returncode == 1 and f"is in use by process {process.pid} on host" in second.stderr, second.stderr
        seen = self.said_step()
        self.wait_for(process, lambda: self.said_step() > seen, "another step")
        process.terminate()
        self.ended(process, 75)
        return "the second run was refused, the first went on"

    def rename_workdir(self) -> str:
        """The workdir gets a name that a glob, a URL or a shell takes for something else; the run goes on there."""
        self.terminate()
        name = f"{self.dice.choice(ODD)}{self.dice.randrange(10**6)}"
        self.workdir = self.workdir.rename(self.folder / name)
        self.terminate()
        return f"went on in {name!r}"

    def other_process(self) -> str:
        """Two processes go on with the run, one with other settings or images: both end, and nothing changes."""
        before = self.step(), Checkpointer(self.workdir).steps()
        with tempfile.TemporaryDirectory() as other, socket.socket() as free:
            shutil.copytree(self.images, other, dirs_exist_ok=True)
            next(Path(other).iterdir()).unlink()
            override, line = self.dice.choice(
                [("seed=1", "process 1 has seed 1, process 0 has 0"), (f"data.path={other}", "process 1 has 63 train")]
            )
            free.bind(("localhost", 0))
            told = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
            free.close()
            both = [
                subprocess.Popen(
                    self.command(self.workdir, *overrides),
                    env=ENVIRONMENT | told | {"JAX_PROCESS_ID": str(index)},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for index, overrides in enumerate(((), (f"--config.{override}",)))
            ]
            said = [process.communicate(timeout=PATIENCE)[1] for process in both]
        assert all(process.returncode == 1 for process in both) and all(line in text for text in said), said
        assert (self.step(), Checkpointer(self.workdir).steps()) == before
        return f"both ended: {line} ..."

    def cut_json(self) -> str:
        """A JSON file of the workdir is cut short: the command names it, and goes on without it."""
        self.terminate()
        path = self.workdir / self.dice.choice(["config.json", "data.json"])
        path.write_bytes(path.read_bytes()[: self.dice.randrange(path.stat().st_size - 2)])
        refused = subprocess.run(
            self.command(self.workdir), env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE
        )
        assert refused.returncode == 1 and path.name in refused.stderr.splitlines()[-1], refused.stderr
        path.unlink()
        return f"{path.name} named"

    def newest(self) -> Path:
        return self.workdir / "checkpoints" / str(Checkpointer(self.workdir).latest_step())

    def truncate_images(self) -> str:
        """A run of its own: images are cut short under it; it goes on, and says how many it had to replace."""
        workdir = self.folder / f"truncated{self.dice.random()}"
        process = self.start(workdir)
        self.wait_for(process, lambda: self.step(workdir) >= 20, "step 20")
        whole = {path: path.read_bytes() for path in self.dice.sample(sorted(self.images.iterdir()), 5)}
        for path, data in whole.items():
            path.write_bytes(data[: len(data) // 2])
        seen = self.step(workdir)
        self.wait_for(process, lambda: self.step(workdir) > seen + 40, "40 more steps")
        process.terminate()
        self.ended(process, 75)
        for path, data in whole.items():
            path.write_bytes(data)
        found, told = read_metrics(workdir)[-1]["undecodable"], (workdir / "undecodable.txt").read_text().splitlines()
        assert 0 < found <= len(told) <= len(whole)  # a file may be met after the last line of metrics
        assert self.log().count("cannot be decoded") == len(told), self.log()
        return "replaced, named once and counted"

    def damage_record(self) -> str:
        """A run of its own on prepared records: bytes of some change under it; it goes on, names and counts them."""
        workdir = self.folder / f"records{self.dice.random()}"
        prepare = [sys.executable, "-m", "greenjax.data.prepare", f"--config={self.config}", f"--output={workdir}.data"]
        subprocess.run(prepare, env=ENVIRONMENT, check=True, capture_output=True, timeout=PATIENCE)
        process = self.start(workdir, "--config.data.source=records", f"--config.data.path={workdir}.data")
        self.wait_for(process, lambda: self.step(workdir) >= 20, "step 20")
        (shard,) = Path(f"{workdir}.data").glob("*.array_record")
        with shard.open("r+b") as file:
            for _ in range(3):
                file.seek(self.dice.randrange(2_000, IMAGES * 500))  # inside the records; padding comes after them
                file.write(self.dice.randbytes(8))
        seen = self.step(workdir)
        self.wait_for(process, lambda: self.step(workdir) > seen + 40, "40 more steps")
        process.terminate()
        self.ended(process, 75)
        assert read_metrics(workdir)[-1]["undecodable"] > 0 and shard.name in (workdir / "undecodable.txt").read_text()
        return "replaced, named with its shard and counted"

    def finish(self, workdir: Path, *overrides: str) -> dict[str, np.ndarray]:
        process = self.start(workdir, *overrides)
        self.ended(process, 0, 20 * PATIENCE)
        return everything(workdir)

    def drawn(self, faults: int) -> list[str]:
        """Names of faults in a random order, every kind about equally often."""
        kinds = [KINDS[i % len(KINDS)] for i in range(faults)]
        self.dice.shuffle(kinds)
        return kinds

    def run(self, faults: int) -> None:
        counts: Counter[str] = Counter()
        for number, name in enumerate(self.drawn(faults), 1):
            since = time.monotonic()
            outcome = getattr(self, name)()
            self.before = self.step()
            counts[name] += 1
            took = time.monotonic() - since
            print(f"{number}/{faults} {name}: {outcome}; step {self.before}, {took:.0f} s", flush=True)
        # A batch depends on the step alone: the undisturbed run makes its own, without a worker.
        disturbed, calm = self.finish(self.workdir), self.finish(self.folder / "calm", "--config.data.workers=0")
        assert disturbed.keys() == calm.keys()
        differing = [key for key in calm if disturbed[key].tobytes() != calm[key].tobytes()]
        assert not differing, f"not the same bits: {differing}"
        steps = [line["step"] for line in read_metrics(self.workdir)]
        assert steps == sorted(set(steps)), "a step is told twice"
        print(f"faults tried: {faults} ({', '.join(f'{name} {count}' for name, count in sorted(counts.items()))})")
        print(f"survived: {sum(counts.values())}; hangs: 0; lost beyond the last checkpoint: 0", end="; ")
        print(f"steps done again: {self.repeated}; {len(calm)} arrays with the same bits")


# Methods of Campaign; every name is tried about equally often.
KINDS = (
    "fill_disk",
    "damage_newest",
    "kill_worker",
    "kill_worker_of_many",
    "kill_worker_at_start",
    "finish_with_many_workers",
    "interrupt_with_many_workers",
    "kill_run",
    "terminate",
    "interrupt",
    "hang_up",
    "close_pipe",
    "fill_log_disk",
    "tear_newest",
    "truncate_images",
    "damage_record",
    "second_run",
    "rename_workdir",
    "other_process",
    "cut_json",
)


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for index, digit in enumerate(load_digits().images[:IMAGES]):
        image = cv2.resize((digit * 15.9).astype(np.uint8), (24, 24), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index:03}.jpg"), image)


def workers_of(pid: int) -> list[int]:
    """The processes that make the batches of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (path / "cmdline").read_bytes(), (path / "stat").read_text()
        except OSError:
            continue
        if b"spawn_main" in command and int(status.rpartition(")")[2].split()[1]) == pid:
            found.append(int(path.name))
    return found


def everything(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint, by name."""
    import orbax.checkpoint as ocp

    checkpointer = Checkpointer(workdir)
    handler = ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler())
    with ocp.Checkpointer(handler) as reader, plain_path(checkpointer.directory) as directory:
        arguments = ocp.args.Composite(state=ocp.args.PyTreeRestore())
        found = reader.restore(directory / str(checkpointer.latest_step()), args=arguments).state
    return {key: np.asarray(value) for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, help="a new folder; default: a temporary one")
    arguments = parser.parse_args()
    # Background jobs of a shell ignore the one, those of nohup the other, and so would the runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.workdir or Path(temporary) / "faults"
        folder.mkdir(parents=True)
        Campaign(folder, arguments.faults, arguments.seed).run(arguments.faults)


if __name__ == "__main__":
    main()
