"""A local directory of files named by the sha256 of their bytes, and which of them are known to be sound."""

from __future__ import annotations

from pathlib import Path

from brainstacks.stacks.artifact import check_digest, is_digest, sha256_file


class Blobs:
    """Args:
    directory: its files that are not named by a digest are others'.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sound: dict[str, tuple[int, int, int]] = {}

    def path(self, digest: str) -> Path:
        """Where these bytes are, or would be. Raises InvalidArtifact: it is no digest."""
        check_digest(digest)
        return self.directory / digest

    def sound(self, digest: str, *, anew: bool = False) -> bool:
        """Whether the file has these bytes; read on first use, when it has changed, and `anew`.

        Raises:
            OSError: it cannot be read.
        """
        path = self.path(digest)
        identity = _identity(path)
        if anew or self._sound.get(digest) != identity:
            if sha256_file(path) != digest:
                return False
            self._sound[digest] = identity
        return True

    def trust(self, digest: str) -> None:
        """The file was made of these bytes just now."""
        self._sound[digest] = _identity(self.path(digest))

    def digests(self) -> list[str]:
        """Sorted."""
        return sorted(path.name for path in self.directory.glob("*") if is_digest(path.name))


def _identity(path: Path) -> tuple[int, int, int]:
    """Of a file's bytes, as far as can be told without reading them."""
    stat = path.stat()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)
