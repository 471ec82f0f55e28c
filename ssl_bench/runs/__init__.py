"""The run folder, and all run folders as tables.

Called, it gives the table of all runs: ``ssl_bench.runs("runs")``, see `ssl_bench.notebook.runs`.
"""

from ssl_bench.utils.callable_package import make_callable

make_callable(__name__)
