from .format import (
    ModelConfig as ModelConfig,
)
from .format import (
    check_target_folder as check_target_folder,
)
from .format import (
    read_arrays as read_arrays,
)
from .format import (
    read_config as read_config,
)
from .history import Change as Change
from .history import History as History
from .hub import PushResult as PushResult
from .hub import fetch as fetch
from .hub import pull as pull
from .hub import push as push
from .model import Model as Model
from .model import load_model as load_model
from .save import record_evaluation as record_evaluation
from .save import restore_version as restore_version
from .save import save_model as save_model
