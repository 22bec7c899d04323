"""`EncodedStorage`: a storage with the codecs of the values in it, as ``init(codec=...)`` makes it.
It encodes nothing itself: whoever writes or reads values asks it for `codecs`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_workflows.codec import PayloadCodec
from ray_workflows.storage.base import Storage
from ray_workflows.storage.forwarding import ForwardingStorage


class EncodedStorage(ForwardingStorage):
    """A storage whose values are encoded on their way there, by those who make them.

    Its URL is the inner one's: it is the same storage, whoever can read the values in it.

    Args:
        storage: the storage. What it keeps is encoded already.
        codecs: the first encodes; all of them decode.
    """

    def __init__(self, storage: Storage, codecs: Sequence[PayloadCodec]) -> None:
        super().__init__(storage)
        self.encoded_by = tuple(codecs)

    def __repr__(self) -> str:
        names = ", ".join(codec.name for codec in self.encoded_by)
        return f"{type(self).__name__}({self.storage!r}, [{names}])"

    @property
    def codecs(self) -> tuple[PayloadCodec, ...]:
        """What values are encoded and decoded with."""
        return self.encoded_by
