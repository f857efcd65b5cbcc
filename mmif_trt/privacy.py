"""What must not leave the process: usage data of the libraries we import, and values of patients.

Both apply to the whole process, so that no call has to remember them: `import mmif_trt` switches usage data
off, and the first module that imports pydicom or pynetdicom silences their messages about data sets.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
import warnings

# The libraries read these when imported. ONNX Runtime keeps a device id and an event database in the user's
# cache folder; Ray reports clusters.
NO_USAGE_DATA = {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}
# OpenVINO forks a process that looks up an analytics host at each import, and writes a client id into the
# user's home. It uses its own stub if this package cannot be imported.
USAGE_PACKAGES = ("openvino_telemetry",)
# Their warnings and loggers quote the values of data sets, or URLs with the UIDs of studies.
QUOTING = ("pydicom", "pynetdicom", "dicomweb_client", "urllib3")


def usage_data_off() -> None:
    """Call before any other import. What the user's own code has imported or set before is left alone."""
    for name, value in NO_USAGE_DATA.items():
        os.environ.setdefault(name, value)
    for package in USAGE_PACKAGES:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]


def font_list_off() -> None:
    """Call before we import matplotlib: its font list goes into a folder that is deleted with the process,
    not into the user's home. Nothing changes if it was imported before, or if MPLCONFIGDIR is set."""
    if "matplotlib" not in sys.modules and "MPLCONFIGDIR" not in os.environ:
        folder = os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="mmif-fonts-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def patient_values_off() -> None:
    """Silences warnings and log records of the libraries that quote data sets, in this process; may be
    repeated.

    The filter matches the module that warns, so warnings of others stay. Records stop at the libraries' own
    loggers: whoever adds a handler to one of these still receives them.
    """
    pattern = rf"({'|'.join(QUOTING)})(\.|$)"
    known = any(f[0] == "ignore" and f[3] and f[3].pattern == pattern for f in warnings.filters)
    if not known:
        warnings.filterwarnings("ignore", module=pattern)
    for name in QUOTING:
        # No level: pydicom sets its own on import, which may be later.
        logger = logging.getLogger(name)
        logger.propagate = False
        if not logger.handlers:  # without any, Python's handler of last resort would print
            logger.addHandler(logging.NullHandler())
