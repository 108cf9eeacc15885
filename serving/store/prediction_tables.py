"""Tables of the prediction log. The shipper of each data plane writes them, and nobody else."""

from sqlalchemy import BigInteger, LargeBinary
from sqlmodel import Field, SQLModel

from serving.store.keys import Key


class PredictionRow(SQLModel, table=True):
    """One predicted row of a request; of a request that failed, one row with nothing predicted.

    Clustered on our own UUIDv7: windows of time and retention are ranges of the key, without an index on time.
    """

    __tablename__ = "prediction"
    __table_args__ = {"sqlite_with_rowid": False}

    id: bytes = Field(sa_type=Key, primary_key=True, description="of the request, a UUIDv7 of ours")
    row: int = Field(primary_key=True, description="within the request, from 0")
    model_id: str
    version: str
    arm: str | None = None
    role: str = Field(description="answer, shadow or probe")
    unit: str | None = Field(default=None, description="who asked: what an experiment assigns")
    arrived_us: int = Field(sa_type=BigInteger, description="microseconds since 1970")
    event_us: int = Field(sa_type=BigInteger, description="event time, microseconds since 1970")
    latency_us: int = Field(sa_type=BigInteger)
    status: int = Field(description="the HTTP status that was answered")
    value: float | None = None
    label: str | None = Field(default=None, description="what was predicted, where it is no number")
    score: float | None = Field(default=None, description="probability of the label")


class PredictionAliasRow(SQLModel, table=True):
    """The prediction that a client knows by an id of its own; only for requests that brought one and were answered."""

    __tablename__ = "prediction_alias"
    __table_args__ = {"sqlite_with_rowid": False}

    client_key: bytes = Field(sa_type=Key, primary_key=True, description="blake2b-16 of model, a zero byte, their id")
    id: bytes = Field(sa_type=Key, index=True)
    body_digest: bytes | None = Field(default=None, sa_type=Key, description="blake2b-16 of the body it came with")


class PayloadChunkRow(SQLModel, table=True):
    """Features and answers of some hundred predictions of one version, compressed; see serving/store/payloads.py."""

    __tablename__ = "payload_chunk"

    first_id: bytes = Field(sa_type=Key, primary_key=True, description="the smallest prediction id in it")
    last_id: bytes = Field(sa_type=Key, description="the largest")
    model_id: str
    version: str
    n: int
    body: bytes = Field(sa_type=LargeBinary)


class RollupRow(SQLModel, table=True):
    """Requests of one stream that arrived within one span of time: how many, and how long they took.

    One row per spool (`source`), so that no two shippers ever touch the same one; readers add them up.
    """

    __tablename__ = "rollup"
    __table_args__ = {"sqlite_with_rowid": False}

    model_id: str = Field(primary_key=True)
    resolution: int = Field(primary_key=True, description="length of the span in seconds: 5, 60 or 3600")
    start: int = Field(sa_type=BigInteger, primary_key=True, description="seconds since 1970")
    version: str = Field(primary_key=True)
    arm: str = Field(primary_key=True, description="empty where there is no test")
    role: str = Field(primary_key=True)
    status: int = Field(primary_key=True)
    source: str = Field(primary_key=True)
    n: int = Field(sa_type=BigInteger, description="requests")
    rows: int = Field(sa_type=BigInteger, description="rows they carried")
    latency_sum: float = Field(description="seconds")
    histogram: bytes = Field(sa_type=LargeBinary, description="of their latencies; see serving/histogram.py")


class SpoolPositionRow(SQLModel, table=True):
    """How far one spool has been read, moved in the transaction that stores what was read."""

    __tablename__ = "spool_position"

    spool: str = Field(primary_key=True)
    segment: int = Field(sa_type=BigInteger)
    offset: int = Field(sa_type=BigInteger, description="bytes of the segment; what lies before is stored")
    taken: int = Field(sa_type=BigInteger, description="rows of the frame at the offset that are stored already")
    torn: int = Field(sa_type=BigInteger, description="bytes that could not be read, all in all")
    dropped: int = Field(sa_type=BigInteger, description="records that the database refused, all in all")
    repeated: int = Field(sa_type=BigInteger, description="records whose client key was stored before, all in all")
