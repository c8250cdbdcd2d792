"""Folders of shards: tables of features that belong together, for collections that are too large for one file.

``shards.json`` lists the files. The name of a file is a hash of its pictures and the encoder, so a file that exists is
never computed again. `clipadapter.features.tables` reads and writes the files.
"""

from __future__ import annotations

import json
import posixpath
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipadapter.encoders import Encoder
from clipadapter.errors import DataError, InputError
from clipadapter.features.collection import (
    StorageError,
    describe_storage_error,
    is_file,
    list_folder,
    open_filesystem,
    refuse_links,
)
from clipadapter.utils.blocks import MAX_BLOCK_WIDTH, MAX_BLOCKS, Blocks, as_blocks
from clipadapter.utils.files import ABANDONED_SECONDS, SHARDS_FILE

FORMAT: Final = 1
"""Format number of a folder of shards."""
OWN_NAMES = rf"{re.escape(SHARDS_FILE)}|.*\.(parquet|partial)"
MAX_PLAN_BYTES = 256 << 20


class ShardBlock(BaseModel):
    """A block of the columns of the features, see `clipadapter.utils.blocks`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    width: int = Field(ge=1, le=MAX_BLOCK_WIDTH)
    fingerprint: str  # by which the feature store knows it


class ShardPlan(BaseModel):
    """``shards.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = FORMAT
    encoder: str  # URI
    fingerprint: str
    blocks: list[ShardBlock] = Field(min_length=1, max_length=MAX_BLOCKS)  # of the columns, ``final`` first
    shards: list[Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.parquet$")]]

    def feature_blocks(self) -> Blocks:
        """The blocks of the features."""
        return as_blocks((block.name, block.width) for block in self.blocks)


def make_plan(uri: str, encoder: Encoder, shards: list[str]) -> ShardPlan:
    """The plan of a folder of shards with these file names, by an encoder that was opened from the URI."""
    info = encoder.info
    blocks = [
        ShardBlock(name=block.name, width=block.width, fingerprint=fingerprint)
        for block, fingerprint in zip(info.blocks, encoder.block_fingerprints(), strict=True)
    ]
    return ShardPlan(encoder=uri, fingerprint=info.fingerprint, blocks=blocks, shards=shards)


def create_folder(filesystem: Any, folder: str) -> None:
    """Create the folder of shards if it does not exist."""
    refuse_links(filesystem, folder, OWN_NAMES)
    try:
        filesystem.create_dir(folder, recursive=True)
    except OSError as error:
        advice = "give a folder that you may write to"
        if filesystem.type_name == "s3":
            advice = "check the bucket, which must exist, the server (AWS_ENDPOINT_URL) and the credentials"
        raise StorageError(f"'{folder}' can't be created: {describe_storage_error(error)}; {advice}") from error


def write_plan(filesystem: Any, folder: str, plan: ShardPlan) -> None:
    """Create the folder and write ``shards.json``."""
    create_folder(filesystem, folder)
    write_object(filesystem, posixpath.join(folder, SHARDS_FILE), plan.model_dump_json(indent=1).encode())


def list_shards(filesystem: Any, folder: str) -> set[str]:
    """Names of the Parquet files in a folder."""
    return {info.base_name for info in list_folder(filesystem, folder) if info.extension == "parquet"}


def remove_abandoned_parts(filesystem: Any, folder: str) -> None:
    """Remove the partial files of killed workers, once they are a day old."""
    for info in list_folder(filesystem, folder):
        is_part = re.fullmatch(r"\.[0-9a-f]{32}\.partial", info.base_name)
        if is_part and info.mtime_ns is not None and time.time() - info.mtime_ns / 1e9 > ABANDONED_SECONDS:
            with suppress(OSError):  # another call removed it first
                filesystem.delete_file(info.path)


def write_object(filesystem: Any, path: str, data: Any) -> None:
    """Write a file atomically."""
    # An object of S3 exists when all of it is stored. There a move would be a copy and a deletion.
    is_atomic = filesystem.type_name == "s3"
    partial = path if is_atomic else posixpath.join(posixpath.dirname(path), f".{uuid.uuid4().hex}.partial")
    try:
        with filesystem.open_output_stream(partial) as stream:
            stream.write(data)
        if not is_atomic:
            filesystem.move(partial, path)
    except OSError as error:
        if not is_atomic:
            with suppress(OSError):
                filesystem.delete_file(partial)
        raise StorageError(
            f"'{path}' can't be written: {describe_storage_error(error)}; check the folder's permissions and free space"
        ) from error


def read_plan(filesystem: Any, folder: str) -> ShardPlan:
    """Read ``shards.json`` of a folder."""
    path = posixpath.join(folder, SHARDS_FILE)
    try:
        refuse_links(filesystem, folder, OWN_NAMES)
        with filesystem.open_input_stream(path) as stream:
            data = stream.read(MAX_PLAN_BYTES + 1)
    except OSError as error:
        raise DataError(f"'{folder}' holds no feature shards: {SHARDS_FILE} can't be read ({error})") from error
    try:
        if len(data) > MAX_PLAN_BYTES:
            raise ValueError(f"it has more than {MAX_PLAN_BYTES >> 20} MB")
        raw = json.loads(data)
        number = raw.get("format") if isinstance(raw, dict) else None
        if type(number) is int and number != FORMAT:
            raise DataError(
                f"'{path}' has format {number}, this version reads {FORMAT}: update clipadapter, or extract the "
                "features again"
            )
        plan = ShardPlan.model_validate(raw)
        plan.feature_blocks()
        return plan
    except DataError:
        raise
    except (InputError, ValidationError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is damaged: {error}; extract the features again, existing files are kept") from error


def holds_shards(folder: str | Path) -> bool:
    """Whether a path or URI is a folder of shards."""
    if "://" not in str(folder):
        return (Path(folder) / SHARDS_FILE).is_file()
    system, path = open_filesystem(folder)
    return is_file(system, posixpath.join(path, SHARDS_FILE))


def find_shards(filesystem: Any, folder: str, plan: ShardPlan) -> list[str]:
    """Paths of all files, none of which is missing."""
    missing = len(set(plan.shards) - list_shards(filesystem, folder))
    if missing:
        raise DataError(
            f"{missing} of {len(plan.shards)} shards of '{folder}' are missing: call extract_with_ray again"
        )
    return [posixpath.join(folder, name) for name in plan.shards]
