"""The file system of `gs://` paths: gcsfs with errors that a user can act on, and no caches."""

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import requests
from fsspec.asyn import sync_wrapper
from gcsfs.core import GCSFileSystem, UnclosableBytesIO
from gcsfs.retry import HttpError
from google.auth.exceptions import GoogleAuthError

from stunet.errors import BucketError, UserError

# gcsfs logs a traceback before it raises the error that is reported here.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

_OFFLINE = (aiohttp.ClientError, requests.RequestException, asyncio.TimeoutError)
_PART_BYTES = 2**24  # read by one request
_CONCURRENT_PARTS = 8
_URL = re.compile("/b/([^/?]+)(?:/o/?([^?]*))?")


class BucketFiles(GCSFileSystem):
    """Google Cloud Storage by gcsfs.

    Listings are not cached, because other processes write to the same folders. Buckets are never
    created.

    Raises:
      BucketError: in all methods, naming the gs:// path: no bucket of this name, no or invalid
        credentials, no permission, no connection after gcsfs's six attempts (30 s).
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "use_listings_cache": False})

    async def _call(self, method: str, path: str, *args: str, **kwargs: Any) -> Any:
        if isinstance(kwargs.get("data"), bytes | memoryview):
            # aiohttp warns of plain bytes over 1 MB.
            kwargs["data"] = UnclosableBytesIO(kwargs["data"])
        if path.endswith("/batch/storage/v1"):  # `_rm` reports
            return await super()._call(method, path, *args, **kwargs)
        name = _object_name(path, args, kwargs)
        with _reporting(name):
            try:
                return await super()._call(method, path, *args, **kwargs)
            except FileNotFoundError as error:
                if path == "b/{}/o" or "/upload/" in path:  # needs no object, only the bucket
                    raise BucketError(
                        f"{name}: the bucket does not exist, expected gs://BUCKET/PATH"
                    ) from error
                raise

    call = sync_wrapper(_call)

    async def _info(self, path: str, generation: str | None = None, **kwargs: Any) -> dict:
        name = self._strip_protocol(path).rstrip("/")
        folder = {"name": name, "size": 0, "type": "directory"}
        if "/" not in name:
            await self._mkdir(name)  # reading a bucket's metadata needs a permission that few have
            return folder
        # gcsfs asks for object and folder in parallel; if both fail, asyncio prints a traceback.
        try:
            return await self._get_object(name)
        except FileNotFoundError:
            await self._list_objects(name, max_results=1)
            return folder

    async def _get_file(self, rpath: str, lpath: str, *args: Any, **kwargs: Any) -> None:
        with _reporting(f"gs://{self._strip_protocol(rpath)}"):
            await super()._get_file(rpath, lpath, *args, **kwargs)

    async def _read_range(
        self, path: str, start: int, stop: int, generation: str | None
    ) -> bytearray:
        """Reads bytes [start, stop) of an object by concurrent requests; see `paths.read_range`."""
        address = self.url(path) + ("" if generation is None else f"&generation={generation}")
        content = bytearray(stop - start)
        limit = asyncio.Semaphore(_CONCURRENT_PARTS)

        async def read(first: int) -> None:
            last = min(first + _PART_BYTES, stop) - 1
            headers = {"Range": f"bytes={first}-{last}"}
            async with limit:
                _, part = await self._call("GET", address, headers=headers)
                if len(part) != last + 1 - first:
                    raise BucketError(
                        f"gs://{self._strip_protocol(path)}: {len(part)} bytes received, expected "
                        f"{last + 1 - first} from {first} on"
                    )
                content[first - start : last + 1 - start] = part

        await asyncio.gather(*map(read, range(start, stop, _PART_BYTES)))
        return content

    read_range = sync_wrapper(_read_range)

    async def _rm(self, path: str, *args: Any, **kwargs: Any) -> list:
        with _reporting(f"gs://{self._strip_protocol(path)}"):
            return await super()._rm(path, *args, **kwargs)

    rm = sync_wrapper(_rm)

    async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Checks that the bucket exists and can be listed; folders need no object."""
        bucket = self.split_path(path)[0]
        await self._call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)

    mkdir = sync_wrapper(_mkdir)

    async def _ls(self, path: str, detail: bool = False, **kwargs: Any) -> list:
        folder = self._strip_protocol(path).rstrip("/")
        entries = await super()._ls(path, detail=True, **kwargs)
        # Consoles create empty objects "NAME/" to show folders, which list themselves.
        entries = [entry for entry in entries if entry["name"].rstrip("/") != folder]
        return entries if detail else [entry["name"] for entry in entries]

    def check_upload(self, path: str) -> None:
        """Starts an upload without data, for which the server checks the same permission."""
        bucket, key, _ = self.split_path(path)
        address = f"{self._location}/upload/storage/v1/b/{quote(bucket)}/o"
        self.call("POST", address, uploadType="resumable", name=key, json={"name": key})

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        await self._mkdir(path)


def _object_name(path: str, args: tuple[str, ...], kwargs: dict[str, Any]) -> str:
    if args:  # "b/{}/o/{}" or, for a list, "b/{}/o"
        bucket, key = args[0], args[1] if len(args) > 1 else kwargs.get("prefix") or ""
    elif found := _URL.search(path):
        bucket, key = unquote(found[1]), unquote(found[2] or "")
    else:
        bucket, key = path, ""
    return f"gs://{bucket}/{key}".rstrip("/")


@contextmanager
def _reporting(name: str) -> Iterator[None]:
    try:
        yield
    except (UserError, FileNotFoundError, FileExistsError):
        raise
    except Exception as error:
        reason = _describe(error)
        if reason is None:
            raise
        raise BucketError(f"{name}: {reason}") from error


def _describe(error: Exception) -> str | None:
    first = str(error).strip().partition("\n")[0].rstrip(".")
    if isinstance(error, GoogleAuthError) or (isinstance(error, HttpError) and error.code == 401):
        return (
            f"no valid credentials for Google Cloud ({first}), expected those of the machine's "
            "service account or of `gcloud auth application-default login`"
        )
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        detail = str(error).strip().rpartition("\n")[2].rstrip(".")
        return f"no permission ({detail}), expected the role Storage Object User for this bucket"
    if isinstance(error, _OFFLINE):
        return f"Google Cloud Storage cannot be reached ({first or type(error).__name__})"
    if isinstance(error, HttpError):
        return f"request to Google Cloud Storage failed ({first})"
    return None
