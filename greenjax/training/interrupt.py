"""SIGTERM, SIGINT and SIGHUP ask a run to stop: it ends its step, saves, and ends with an exit code of its own."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from greenjax.runtime.console import complain
from greenjax.runtime.placement import Placement


class Interruption:
    """Takes the signals in the main thread while it is open; a second signal has its usual effect at once.

    SIGHUP comes when the terminal closes, often twice, from the shell and from the system: the second is ignored. A
    signal that is ignored when the run starts stays ignored: SIGHUP by nohup, SIGINT in a script's background.
    """

    def __init__(self, place: Placement):
        self.signal = ""
        self._place = place
        self._usual: dict[signal.Signals, Any] = {}
        self._asked: Any = None
        self._any = jax.jit(jnp.any, out_shardings=place.copies)

    @property
    def by(self) -> str:
        return self.signal or "another process"

    def asked(self) -> bool:
        """Is it time to stop? All processes call this once a step and get the same answer.

        The signal may not have reached all of several processes: they agree through the devices, one step later.
        """
        if jax.process_count() == 1:
            return bool(self.signal)
        before, here = self._asked, np.full(jax.local_device_count(), bool(self.signal))
        self._asked = self._any(self._place(here))
        return before is not None and bool(jax.device_get(before))

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        self._restore()
        if signal.SIGHUP in self._usual:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # In a thread: the signal may have come in the middle of another line.
        text = f"{self.signal}: stopping after the step under way, which is saved; a second signal stops at once"
        threading.Thread(target=complain, args=(text,), daemon=True).start()

    def _restore(self) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            taken = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
            self._usual = {number: signal.signal(number, self._take) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
