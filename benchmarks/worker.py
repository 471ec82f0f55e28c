"""One measurement in a process of its own: prints what it found as a line of JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Call ``module:function`` with the keyword arguments that the first word holds as JSON."""
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    order = json.loads(sys.argv[1])
    module, _, function = order["function"].partition(":")
    arguments = order["arguments"]
    if arguments.get("folder"):
        arguments["folder"] = Path(arguments["folder"])
    found = getattr(importlib.import_module(module), function)(**arguments)
    print(json.dumps(found), flush=True)
    os._exit(0)  # a DataLoader's workers need no farewell


if __name__ == "__main__":
    main()
