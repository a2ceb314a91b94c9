"""A checkpoint that cannot be written or read is reported once: by what Orbax raises, the run's one line."""

import functools
import logging
import sys
import warnings


def quieten_orbax() -> None:
    """What Orbax raises it also logs, with the traceback of a thread."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


@functools.cache
def quieten_failed_writes() -> None:
    """Keeps off stderr what asyncio and TensorStore say of a failed checkpoint besides what Orbax raises.

    Orbax closes its event loop at the first write that fails. asyncio logs what became of the others and warns of those
    that had not begun; TensorStore still reports to the loop from threads of its own, an error that nobody can catch,
    which goes to `sys.unraisablehook`, with no object that raised it. Only a process that writes checkpoints is changed
    so: one that loads an agent may have an event loop of its own.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)
    show = sys.unraisablehook

    def show_others(error):
        late_report = isinstance(error.exc_value, RuntimeError) and str(error.exc_value) == "Event loop is closed"
        if not (late_report and error.object is None):
            show(error)

    sys.unraisablehook = show_others
