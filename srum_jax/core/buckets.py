"""The client of a bucket, for all of this process, that says so where it gets no answer.

gcsfs says of a folder of which it was told nothing that it is none: a run would take a folder with
checkpoints for an empty one, and begin again. `core/files.py` has fsspec take this client instead.
"""

import gcsfs


class GoogleStorage(gcsfs.GCSFileSystem):
    """gcsfs, whose `isdir` and `isfile` raise what a request raises."""

    async def _isdir(self, path: str) -> bool:
        return await self._kind(path) == "directory"

    async def _isfile(self, path: str) -> bool:
        return await self._kind(path) == "file"

    async def _kind(self, path: str) -> str:
        try:
            return (await self._info(path))["type"]
        except FileNotFoundError:
            return ""
