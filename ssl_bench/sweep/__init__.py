"""Many runs: a grid or a search of them, one after the other or as jobs of a cluster.

Called, it does a sweep: ``ssl_bench.sweep(seed=range(3))``, see `ssl_bench.notebook.sweep`.
"""

from ssl_bench.utils.callable_package import make_callable

make_callable(__name__)
