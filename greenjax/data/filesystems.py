"""fsspec's filesystems of URLs: which there are, how one is opened, and what their errors mean."""

import importlib
from functools import cache
from typing import Any

from greenjax.data.encoded import DecodeError
from greenjax.errors import InputError, listed

PACKAGES = {  # by scheme: the module that fsspec needs for it, and what installs that
    "s3": ("s3fs", "'greenjax[s3]'"),
    "http": ("aiohttp", "'greenjax[http]'"),
    "https": ("aiohttp", "'greenjax[http]'"),
    "gs": ("gcsfs", "gcsfs"),
    "hf": ("huggingface_hub", "huggingface_hub"),
}
BOTO = {"config_kwargs": {"retries": {"max_attempts": 1}}}  # by itself it tries for longer than one try may take
NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")  # boto's


class Refused(DecodeError):
    """A server does not give an object, and would not give it if asked again."""


class Forbidden(Refused):
    """A server does not give an object to this user."""


def check_scheme(url: str) -> None:
    """Raises InputError for a kind of URL that is not read, or whose package is not installed."""
    scheme = url.partition("://")[0]
    if scheme not in PACKAGES:
        raise InputError(f"{url!r} is a URL: expected a path, or a URL that begins with one of {listed(PACKAGES)}")
    module, name = PACKAGES[scheme]
    try:
        importlib.import_module("fsspec")
        importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{url!r} needs {module}, which is not installed: pip install {name}") from error


@cache
def filesystem(scheme: str, process: int) -> Any:
    """fsspec's filesystem of a process, shared by its threads."""
    import fsspec  # an extra: only URLs need it
    from fsspec.asyn import sync
    from fsspec.config import conf

    options = BOTO if scheme == "s3" and "config_kwargs" not in conf.get("s3", {}) else {}
    files: Any = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **options)
    if hasattr(files, "set_session"):  # reading boto's files takes up to seconds: a cancelled try would begin anew
        sync(files.loop, files.set_session)
    return files


def judged(error: Exception) -> tuple[type[Refused] | None, str]:
    """What to raise at once, None for an error that may pass; and the reason in words."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and type(cause).__module__.startswith("aiohttp"):
        assert isinstance(cause, Exception)
        return judged(cause)  # fsspec's http takes any error of a size for a missing file
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return Refused, "there is no such object"
    if isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ in NO_KEYS:
        return Forbidden, f"no right to read it ({status or said(error)})"
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return Refused, f"the server answers {status} ({said(error)})"
    if status is not None:
        return None, f"the server answers {status}"
    return None, "no answer in time" if isinstance(error, TimeoutError) else said(error)


def status_of(error: Exception) -> int | None:
    """The status of HTTP that a server answered: of aiohttp's errors, and of boto's below s3fs's."""
    for each in (error, error.__cause__):
        if isinstance(status := getattr(each, "status", None), int):
            return status
        if isinstance(response := getattr(each, "response", None), dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return None


def said(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
