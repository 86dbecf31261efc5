"""How the report's templates are found and filled in: escaped, and with nothing undefined."""

import functools

import jinja2

from srum_jax.report import numbers


@functools.cache
def templates() -> jinja2.Environment:
    """The templates of this package. Whatever enters one is escaped unless it is markup, and a name
    that is not there is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("srum_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= numbers.FILTERS
    return environment
