from .autotune import choose_backend as choose_backend
from .autotune import restore_backend as restore_backend
from .extraction import (
    EmbedResult as EmbedResult,
)
from .extraction import (
    Extraction as Extraction,
)
from .extraction import (
    embed as embed,
)
from .extraction import (
    extract as extract,
)
from .extraction import (
    parse_shard as parse_shard,
)
from .extraction import stream_features as stream_features
from .feature_set import FeatureSet as FeatureSet
from .store import FeatureStore as FeatureStore
from .store import feature_key as feature_key
from .tables import FeatureBatch as FeatureBatch
from .tables import FeatureRow as FeatureRow
from .tables import FeatureTable as FeatureTable
from .tables import extract_rows as extract_rows
from .tables import import_shards as import_shards
from .tables import open_feature_table as open_feature_table
from .tables import read_features as read_features
from .tables import write_parquet as write_parquet
from .text import encode_classes as encode_classes
from .views import (
    FEWER_PREDICTION_VIEWS as FEWER_PREDICTION_VIEWS,
)
from .views import (
    PER_EPOCH as PER_EPOCH,
)
from .views import (
    PerEpochViews as PerEpochViews,
)
from .views import (
    ViewCost as ViewCost,
)
from .views import (
    ViewSpec as ViewSpec,
)
from .views import (
    augment as augment,
)
