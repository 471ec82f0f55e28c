"""Work of an evaluation that ranks share. It changes no result, so that no protocol counts it.

What is imported from here, and how it decorates a function, is no part of a plugin's fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

from torch import Tensor

from ssl_bench.distributed import collectives

K = TypeVar("K")


def shared_rows(
    name: str,
) -> Callable[[Callable[..., Mapping[K, Tensor]]], Callable[..., Mapping[K, Tensor]]]:
    """Have each rank call a function with its share of the rows of one argument.

    Every rank gets the whole answer, a row for each of the argument's. With one rank the function
    is called as it is.

    Args:
        name: of the argument, of which each row is answered by itself.
    """

    def decorate(function: Callable[..., Mapping[K, Tensor]]) -> Callable[..., Mapping[K, Tensor]]:
        parameters = signature(function)

        @wraps(function)
        def shared(*arguments: Any, **named: Any) -> Mapping[K, Tensor]:
            if collectives.world_size() == 1:
                return function(*arguments, **named)
            bound = parameters.bind(*arguments, **named)
            rows = bound.arguments[name]
            bound.arguments[name] = rows[collectives.share(len(rows))]
            found = function(*bound.args, **bound.kwargs)
            return {key: collectives.gather_shares(own, len(rows)) for key, own in found.items()}

        return shared

    return decorate
