"""Start and end of every kernel of a compiled program, by JAX's profiler."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Event(NamedTuple):
    """One run of a kernel, in seconds; `name` is that of its instruction, or of the kernel where there is none."""

    name: str
    start: float
    end: float


def profiled(run: Callable[[], Any], names: Collection[str]) -> tuple[list[Event], float]:
    """The kernels of one run, and the run's wall seconds. `names`: the instructions of its program."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # tracing Python's calls would cost time
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds = time.perf_counter() - start
        (path,) = Path(folder).rglob("*.xplane.pb")
        return read_events(jax.profiler.ProfileData.from_file(str(path)), names), seconds


def read_events(profile: Any, names: Collection[str]) -> list[Event]:
    """The kernels of the first device in a profile, in the order of their starts.

    A GPU has a plane with a line for each stream. On a CPU kernels are events among others of its threads.
    """
    planes = {plane.name: plane for plane in profile.planes}
    devices = sorted(name for name, plane in planes.items() if name.startswith("/device:") and list(plane.lines))
    if devices:
        found = _on_device(planes[devices[0]])
    else:
        found = _on_host(planes["/host:CPU"], names) if "/host:CPU" in planes else []
    return sorted(found, key=lambda event: event.start)


def _on_device(plane: Any) -> Iterable[Event]:
    lines = list(plane.lines)
    # Other lines, such as "XLA Ops" and "Steps", sum up what the streams say.
    streams = [line for line in lines if line.name.startswith("Stream")]
    operations = [line for line in lines if line.name == "XLA Ops"]
    for line in streams or operations or lines:
        for event in line.events:
            name = dict(event.stats).get("hlo_op") or event.name
            yield Event(str(name), event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9)


def _on_host(plane: Any, names: Collection[str]) -> Iterable[Event]:
    """A kernel that several threads share ends with its `end: NAME` event, after the event of the first thread."""
    begun: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    ended: dict[str, list[float]] = defaultdict(list)
    for line in plane.lines:
        for event in line.events:
            end = event.start_ns + event.duration_ns
            if event.name.startswith("end: "):
                ended[event.name.removeprefix("end: ")].append(end)
            elif event.name in names:
                device = dict(event.stats).get("device_ordinal", 0)
                begun[int(device), event.name].append((event.start_ns, end))
    first = min((device for device, _ in begun), default=0)
    for (device, name), runs in begun.items():
        ends = sorted(ended[name])
        for index, (start, end) in enumerate(sorted(runs)):
            if device == first:
                # With as many ends as beginnings the k-th end belongs to the k-th run. Ends name no device.
                own = ends[index] if len(ends) == len(runs) else end
                yield Event(name, start / 1e9, max(end, own) / 1e9)


def shared_seconds(events: list[Event]) -> list[float]:
    """Seconds of every event; concurrent events share the time equally, so that the sum is the busy time."""
    bounds = sorted([(e.start, 0, i) for i, e in enumerate(events)] + [(e.end, 1, i) for i, e in enumerate(events)])
    seconds, running, last = [0.0] * len(events), set(), 0.0
    for moment, ends, index in bounds:
        for each in running:
            seconds[each] += (moment - last) / len(running)
        last = moment
        if ends:
            running.discard(index)
        else:
            running.add(index)
    return seconds


def without_callers(events: list[Event], calls: dict[str, tuple[str, ...]]) -> list[Event]:
    """The events without instructions that only call others which have events of their own."""
    seen = {event.name for event in events}
    return [event for event in events if not seen.intersection(calls.get(event.name, ()))]
