"""The layouts of a model: finding one by name, and the differences between its library and greenjax."""

from ml_collections import ConfigDict

from greenjax.backbones.registry import FAMILIES, family_of
from greenjax.backbones.rules import Fault, Layout
from greenjax.backbones.transforms import OWN_ORDER
from greenjax.errors import InputError

MERGE_ORDERS = (OWN_ORDER, "raster")
RESIZE_METHODS = ("geometric", "bicubic", "none")


def layout_names() -> tuple[str, ...]:
    """The names of the layouts of all families."""
    return tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.layouts))


def find_layout(name: str, config: ConfigDict, merge_order: str = OWN_ORDER) -> Layout:
    """The layout of a resolved config's family. Raises InputError where it has none, or not this merge order."""
    model, layouts = config.model.name, family_of(config.model.name).layouts
    if name not in layouts:
        raise InputError(f"layout is {name!r}: expected {' or '.join(layouts)} for a {model}")
    orders = {OWN_ORDER: layouts[name].encoder, **layouts[name].merge_orders}
    if merge_order not in orders:
        expected = " or ".join(map(repr, orders))
        raise InputError(f"merge_order is {merge_order!r}: expected {expected} with layout {name!r} of a {model}")
    found = layouts[name]._replace(encoder=orders[merge_order])
    if config.task == "detect" and found.detector:
        return found._replace(model_prefix=found.detector_prefix)
    return found


def check_geometry(name: str, layout: Layout, config: ConfigDict) -> list[str]:
    """The differences between a library and greenjax, a line each. Raises InputError where it cannot run the model."""
    faults = faults_of(layout, config)
    for fault in faults:
        if fault.kind == "refused":
            raise InputError(f"layout {name!r}: {fault}")
    notes = [str(fault) for fault in faults]
    if not layout.any_epsilon and abs(config.model.norm_epsilon - layout.epsilon) > 1e-12:
        notes.insert(
            0, f"the library's norms have epsilon {layout.epsilon:g}, the model's {config.model.norm_epsilon:g}"
        )
    return notes


def faults_of(layout: Layout, config: ConfigDict) -> list[Fault]:
    """The faults of a layout. One without names for a detector takes none: its encoder alone lacks the last norm."""
    faults = list(layout.faults(config))
    if config.task != "detect" or layout.detector:
        return faults
    having = [name for name, other in family_of(config.model.name).layouts.items() if other.detector]
    then = f"expected layout {' or '.join(having)}" if having else "no layout has its parts; to-onnx writes its pyramid"
    return [Fault("the model is a detector", f": {then}", "refused"), *faults]


def export_line(config: ConfigDict) -> str:
    """One line: the layouts that take a resolved config's weights as they are at its image size; why others do not."""
    fits, faulty = [], {}
    for name, layout in family_of(config.model.name).layouts.items():
        faults = faults_of(layout, config)
        grave = [fault for fault in faults if fault.kind != "small images"]
        if grave:
            first = next((fault for fault in grave if fault.kind == "refused"), grave[0])
            faulty.setdefault(first.because, []).append(name)
        else:
            fits.append(f"{name} (on larger images)" if faults else name)
    reasons = "; ".join(f"{', '.join(names)} ({because})" for because, names in faulty.items())
    return f"weights as they are: {', '.join(fits) or 'none'}" + (f"; not: {reasons}" if reasons else "")
