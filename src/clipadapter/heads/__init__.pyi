from .base import Head as Head
from .incremental import ExactIncrementalHead as ExactIncrementalHead
from .incremental import IncrementalHead as IncrementalHead
from .out_of_fold import (
    OutOfFold as OutOfFold,
)
from .out_of_fold import (
    mean_shots_per_class as mean_shots_per_class,
)
from .out_of_fold import (
    out_of_fold as out_of_fold,
)
from .registry import (
    Fidelity as Fidelity,
)
from .registry import (
    create_head as create_head,
)
from .registry import (
    default_parameters as default_parameters,
)
from .registry import (
    fidelity_of as fidelity_of,
)
from .registry import (
    head_info as head_info,
)
from .registry import (
    list_heads as list_heads,
)
from .registry import (
    register_head as register_head,
)
from .select import Candidate as Candidate
from .select import Selection as Selection
from .select import select as select
from .support import SupportSet as SupportSet
from .text import TextFeatures as TextFeatures
from .trained_head import TrainedHead as TrainedHead
