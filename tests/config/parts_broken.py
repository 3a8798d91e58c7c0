"""A module that cannot be imported: what it needs is not there."""

import no_such_package_at_all  # noqa: F401
