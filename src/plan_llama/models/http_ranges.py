"""Read the start of a file on a server in growing ranges, bounded in bytes: headers, never tensor data."""

from __future__ import annotations

import re
from collections.abc import Mapping

from plan_llama.errors import ModelError, RemoteError
from plan_llama.models.http_transport import Access, Deadline, Response, request

# A header with 262,144 tokens and 500,000 merges has about 20 MB.
FIRST_BYTES = 2 << 20
_LARGEST_STEP = 16 << 20
MAX_HEADER_BYTES = 64 << 20
MAX_WITHOUT_RANGES = 32 << 20
_SHORT_ANSWERS = 8

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class RemoteFile:
    """A file on a server, read forwards in growing ranges: `read_header(file.read_at, file.size, name)`.

    `unchanged` is True where the server says that the file still has the tag `unless_etag`; nothing can be
    read then. Without support for ranges the file is read from its start, up to MAX_WITHOUT_RANGES.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        deadline: Deadline,
        access: Access | None = None,
        first_bytes: int = FIRST_BYTES,
        unless_etag: str = "",
    ) -> None:
        self.name = name
        self.size = 0
        self.etag = ""
        self.unchanged = False
        self.fetched_bytes = 0
        self._url = url
        self._deadline = deadline
        self._access = access
        self._step = first_bytes
        self._short = 0
        self._base = 0
        self._chunk = b""
        self._stream: Response | None = None
        try:
            self._fetch(0, 0, {"If-None-Match": unless_etag} if unless_etag else {})
        except RemoteError as error:
            if error.status != 304 or not unless_etag:
                raise
            self.unchanged = True

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, which is nowhere before the last one; fewer only at the end of the file."""
        end = min(offset + size, self.size)
        while end > self._base + len(self._chunk):
            if self._stream is not None:
                self._continue(offset, end)
            else:
                self._fetch(offset, end)
        start = offset - self._base
        return self._chunk[start : end - self._base] if end > offset else b""

    def close(self) -> None:
        """Ends the connection that is left where the server knows no ranges."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _fetch(self, offset: int, end: int, headers: Mapping[str, str] | None = None) -> None:
        """The next range: what is kept from `offset` on, and at least to `end` if the server gives it."""
        have = self._base + len(self._chunk)
        if offset >= have:
            self._base, self._chunk = offset, b""
        else:
            self._base, self._chunk = offset, self._chunk[offset - self._base :]
        start = self._base + len(self._chunk)
        left = MAX_HEADER_BYTES - self.fetched_bytes
        if end - start > left:
            raise ModelError(
                f"{self.name}: its header does not end within {MAX_HEADER_BYTES >> 20} MiB, which is as much as is "
                "read over a network",
                hint="download it and give the file",
            )
        length = min(max(self._step, end - start), left)
        self._step = min(self._step * 2, _LARGEST_STEP)
        wanted = {"Range": f"bytes={start}-{start + length - 1}", **(headers or {})}
        response = request(
            self._url, deadline=self._deadline, access=self._access, headers=wanted, name=self.name
        )
        try:
            self._same_file(response)
            if response.status == 206:
                data = response.read(min(length, self._range_length(response, start)))
                if len(data) < min(length, self.size - start):
                    self._count_short(len(data))
                self._chunk += data
                self.fetched_bytes += len(data)
                return
            if start:
                raise RemoteError(f"{self.name}: the server stopped answering range requests")
            stated = response.headers.get("Content-Length", "")
            if not re.fullmatch(r"[0-9]{1,18}", stated):
                raise RemoteError(
                    f"{self.name}: the server neither takes range requests nor says how large the file is",
                    hint="download it and give the file",
                )
            self.size = int(stated)
            self._stream = response
        finally:
            if self._stream is not response:
                response.close()

    def _continue(self, offset: int, end: int) -> None:
        assert self._stream is not None  # noqa: S101 - the caller checked
        position = self._base + len(self._chunk)
        if end > MAX_WITHOUT_RANGES:
            raise ModelError(
                f"{self.name}: the server takes no range requests, and the header does not end within the first "
                f"{MAX_WITHOUT_RANGES >> 20} MiB",
                hint="download it and give the file",
            )
        data = self._stream.read(end - position)
        if len(data) < end - position:
            raise self._ended(len(data), end - position)
        self.fetched_bytes += len(data)
        whole = self._chunk + data
        self._chunk, self._base = whole[offset - self._base :], offset

    def _same_file(self, response: Response) -> None:
        etag = str(response.headers.get("ETag", ""))
        if self.etag and etag and etag != self.etag:
            raise self._changed()
        self.etag = self.etag or etag

    def _range_length(self, response: Response, start: int) -> int:
        """Bytes of the answered range. Raises RemoteError for one that was not asked for."""
        stated = str(response.headers.get("Content-Range", ""))
        match = _CONTENT_RANGE.fullmatch(stated)
        total = int(match[3]) if match and match[3] != "*" else 0
        if not match or int(match[1]) != start or not start <= int(match[2]) < total:
            raise RemoteError(
                f"{self.name}: the server answers the range from {start:,} with {stated[:80]!r}, "
                f"expected 'bytes {start}-…/SIZE'"
            )
        if self.size and total != self.size:
            raise self._changed()
        self.size = total
        return int(match[2]) + 1 - start

    def _count_short(self, count: int) -> None:
        self._short += 1
        if self._short > _SHORT_ANSWERS or (not count and self._short > 2):
            raise self._ended(count, None)

    def _ended(self, count: int, wanted: int | None) -> RemoteError:
        of = f" of {wanted:,}" if wanted else ""
        return RemoteError(
            f"{self.name}: the connection ended after {count:,}{of} bytes again and again"
            if wanted is None
            else f"{self.name}: the connection ended after {count:,}{of} bytes",
            hint="try again",
        )

    def _changed(self) -> RemoteError:
        return RemoteError(f"{self.name}: the file changed while it was read", hint="try again")
