"""Translation between ids and names of keys, for the endpoints that show several keys."""

from __future__ import annotations

import re

from endpoints.services import services
from errors import InvalidRequest
from keys.key import ID_PREFIX
from keys.key_errors import KeyFileError

ID = re.compile(rf"{ID_PREFIX}[A-Za-z0-9_-]{{1,64}}")


def key_names() -> dict[str, str]:
    """Return the name of each key, by its id. Deleted keys have none."""
    return {key.id: key.name for key in services().keys.all()}


def key_id_of(id_or_name: str | None) -> str | None:
    """Return a key's id. The id of a deleted key is accepted too.

    Returns:
        None if the argument is None.

    Raises:
        InvalidRequest: no key, or more than one, has this name.
    """
    if id_or_name is None or ID.fullmatch(id_or_name):
        return id_or_name
    try:
        return services().keys.get(id_or_name).id
    except KeyFileError:
        # The value isn't quoted, because it may be a secret that was pasted by mistake.
        raise InvalidRequest(
            "key: there is no key, or more than one, with this id or name.", param="key"
        ) from None
