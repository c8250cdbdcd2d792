from .predictor import DEFAULT_BATCH_SIZE as DEFAULT_BATCH_SIZE
from .predictor import ExportMetadata as ExportMetadata
from .predictor import Outputs as Outputs
from .predictor import Predictor as Predictor
