"""A checkpoint that cannot be written is reported once: by what Orbax raises, which becomes the run's one line."""

import functools
import logging
import sys


@functools.cache
def quieten_orbax() -> None:
    """Keeps off stderr what Orbax, asyncio and TensorStore say of a failed write besides what Orbax raises.

    Orbax logs it with the traceback of a thread, and asyncio logs what became of the other writes. Orbax closes its
    event loop at the first failure, while TensorStore still reports to it from threads of its own: an error that nobody
    can catch, which goes to `sys.unraisablehook`, with no object that raised it.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def show_others(error):
        late_report = isinstance(error.exc_value, RuntimeError) and str(error.exc_value) == "Event loop is closed"
        if not (late_report and error.object is None):
            show(error)

    sys.unraisablehook = show_others
